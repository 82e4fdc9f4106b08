"""Constant outputs: those of a network that are the same for all samples."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc.sharding import to_host

# Outputs that vary less than this share of their size do not vary.
_STILL = 1e-6

Network = tuple[Callable[[PyTree, PyTree], PyTree], PyTree]


def stuck_outputs(
    merged: Network, parents: Iterable[Network], batches: Iterable[PyTree]
) -> tuple[int, int]:
    """Count the outputs that vary over samples in a parent, and not in a merged one.

    Batches are read until every output has varied: one, as a rule.

    Args:
        merged: the function `(variables, batch) -> outputs` of a network, and its
            variables.
        parents: those of its parents.
        batches: what the functions take; a re-iterable.

    Returns:
        How many there are, and how many outputs of a sample in all. Outputs without an
        axis of samples in front are not counted.
    """
    still = constant_outputs(merged, batches)
    if not still.any():
        return 0, still.size
    varies = [~constant_outputs(parent, batches) for parent in parents]
    return int((still & np.any(varies, axis=0)).sum()), still.size


def constant_outputs(network: Network, batches: Iterable[PyTree]) -> np.ndarray:
    """Say of each output of a network whether it is the same for all samples.

    Args:
        network: its function `(variables, batch) -> outputs`, and its variables.
        batches: what the function takes.

    Returns:
        A truth value for each entry of the outputs of one sample.
    """
    apply_fn, variables = network
    compiled = jax.jit(apply_fn)
    low, high = np.zeros(0), np.zeros(0)
    for number, batch in enumerate(batches):
        lowest, highest = _range(compiled(variables, batch), batch)
        if number == 0:
            low, high = lowest, highest
        elif low.shape == lowest.shape:  # or batches of another length
            low, high = np.minimum(low, lowest), np.maximum(high, highest)
        if not _is_still(low, high).any():
            break
    return _is_still(low, high)


def _is_still(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return high - low <= _STILL * np.maximum(np.abs(low), np.abs(high))


def _range(outputs: PyTree, batch: PyTree) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest value over samples of each entry of outputs."""
    counts = {np.shape(x)[0] for x in jax.tree.leaves(batch) if np.shape(x)}
    outputs = jax.tree.leaves(outputs)
    rows = [to_host(x) for x in outputs if _runs_over(x, counts)]
    return _flat([x.min(axis=0) for x in rows]), _flat([x.max(axis=0) for x in rows])


def _runs_over(output: Any, counts: set[int]) -> bool:
    """Whether an output is of numbers, with an axis of samples in front."""
    is_real = output.dtype.kind in "fiub" or output.dtype.name == "bfloat16"
    return is_real and bool(output.shape) and output.shape[0] in counts - {0}


def _flat(values: Sequence[np.ndarray]) -> np.ndarray:
    flat = [np.asarray(value, np.float64).ravel() for value in values]
    return np.concatenate([np.zeros(0), *flat])
