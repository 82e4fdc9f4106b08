"""Models fine-tuned from one base: trees of small arrays, and ways to merge them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tiny

from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.finetunes.methods import FINETUNE_METHODS

MLP = tiny.MLP


def fine_tunes(
    base: dict[str, np.ndarray], models: int = 2, seed: int = 0, size: float = 0.1
) -> list[dict[str, np.ndarray]]:
    """Add something small to every leaf of a base, other for every model."""
    generator = np.random.default_rng([seed, 77])
    return [
        {
            path: (leaf + size * generator.normal(size=leaf.shape)).astype(leaf.dtype)
            for path, leaf in base.items()
        }
        for _ in range(models)
    ]


def batches(net: tiny.Tiny = MLP, count: int = 4, size: int = 16) -> list[np.ndarray]:
    return [tiny.batch(net, seed, size) for seed in range(count)]


def merged(
    models: Any, base: Any = None, method: str = "linear", **options: Any
) -> Any:
    """Merge by any method, with all that it may need, and return the variables."""
    return merge_finetunes(
        models, base, method, **needs(method, len(models)), **options
    ).variables


def needs(method: str, models: int, net: tiny.Tiny = MLP) -> dict[str, Any]:
    """Return the arguments that a method needs besides models and base."""
    row, found = FINETUNE_METHODS[method], {}
    if row.is_random:
        found["key"] = jax.random.key(3)
    if row.needs_data:
        count = 2 * models
        found |= {"apply_fn": net.apply_fn, "batches": batches(net, count, 32)}
        found["owners"] = [number % models for number in range(count)]
    if row.runs == "greedy":
        found["score"] = lambda variables: (
            -abs(float(np.asarray(first(variables)).sum()))
        )
    return found


def first(variables: dict[str, Any]) -> Any:
    return next(iter(variables.values()))


def matrix(
    rule: Callable[..., Any] | str, deltas: Any, base: Any = None, **options: Any
):
    """Merge one matrix, given what is added to a base of zeros in float64's place.

    The deltas are rounded to float32 first; what is returned is the merged delta.
    """
    deltas = [np.asarray(delta, np.float32) for delta in deltas]
    zeros = np.zeros_like(deltas[0]) if base is None else np.float32(base)
    trees = [{"kernel": zeros + delta} for delta in deltas]
    found = merged(trees, {"kernel": zeros}, rule, **options)["kernel"]
    return np.asarray(found, np.float64) - zeros
