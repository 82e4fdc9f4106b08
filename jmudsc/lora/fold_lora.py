"""Fold LoRA: what was trained beside a base becomes part of it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.ending import fixed_spec
from jmudsc.finetunes.job import widened
from jmudsc.lazy import is_lazy, LazyArray, present
from jmudsc.lora.leaf_changes import applied, Change
from jmudsc.lora.lora import Lora
from jmudsc.lora.placement import changes_of, Naming
from jmudsc.merging.result import MergeResult
from jmudsc.sharding import placed_like, to_host

# (path, leaf of the base in wide numbers) -> what it becomes.
Changing = Callable[[str, np.ndarray], np.ndarray]


def fold_lora(
    adapter: Lora,
    base: PyTree,
    *,
    rename: Mapping[str, str] | None = None,
    axes: Mapping[str, str] | None = None,
) -> MergeResult:
    """Fold a LoRA adapter into its base: W + scale A B for every leaf it changes.

    Computed in float32 and rounded once, to the dtype of the base. DoRA, biases and
    replaced leaves are folded too. If the base is on disk (`load(..., lazy=True)`),
    every leaf is folded when it is read or saved.

    Args:
        adapter: from `load_lora` or `lora_from_tree`.
        base: the variables that it was trained on: leaves of torch's order (called
            weight) or of Flax's (kernel, embedding).
        rename: pattern of names in the adapter -> path in the base, where they differ
            in more than `.`, `/`, `_` before a number, or what is in front:
            `{"model.layers.*.self_attn.*": "params/blocks_*/attention/*"}`. The first
            that matches counts; a path that ends in `[*]` is one layer of a leaf that
            holds several.
        axes: pattern of paths in the base -> a letter for each axis, as for
            `merge_finetunes`, where names and sizes do not tell.

    Returns:
        The variables, of the structure and dtypes of the base; `save` writes them.

    Raises:
        ValueError: listing what has no leaf in the base, or does not fit the leaf.

    Example:
        >>> import numpy as np
        >>> update = {"lora_a": np.ones((2, 1)), "lora_b": np.ones((1, 2))}
        >>> from jmudsc.lora.flax_pairs import lora_from_tree
        >>> adapter = lora_from_tree({"mlp": update})
        >>> folded = fold_lora(adapter, {"mlp": {"kernel": np.eye(2)}})
        >>> folded.variables["mlp"]["kernel"].tolist()
        [[2.0, 1.0], [1.0, 2.0]]
    """
    leaves = paths.flatten(base)
    naming = Naming(rename or {}, axes or {})
    changes = changes_of("fold_lora", adapter, shapes_of(leaves), naming)
    told = {path: told_of(change) for path, change in changes.items()}
    variables = with_changes(base, changes, lambda x, leaf: applied(changes[x], leaf))
    recipe = {"method": "fold", "adapters": [adapter.where]}
    return MergeResult(variables, fixed_spec(base), {}, recipe=recipe, changes=told)


def with_changes(base: PyTree, changed: Iterable[str], change: Changing) -> PyTree:
    """Change some leaves of a base: now, or when each is read from disk.

    Args:
        base: the variables.
        changed: the paths of the leaves.
        change: what a leaf becomes, in float32 or its own numbers if wider.
    """
    leaves, on_disk = paths.flatten(base), is_lazy(base)

    def folded(path: str) -> np.ndarray:
        leaf = np.asarray(to_host(present(leaves[path])))
        return change(path, widened(leaf, wide_type(leaf.dtype))).astype(leaf.dtype)

    fetch = lambda names: {name: folded(name) for name in names}
    found = dict(leaves)
    for path in changed:
        leaf = leaves[path]
        if on_disk:
            found[path] = LazyArray(path, tuple(leaf.shape), leaf.dtype, fetch)
        elif isinstance(leaf, jax.Array):
            found[path] = placed_like(jnp.asarray(folded(path)), leaf)
        else:
            found[path] = folded(path)
    return paths.unflatten(base, found)


def wide_type(dtype: np.dtype) -> np.dtype:
    """Return in which numbers a leaf is changed: float32, or wider if it is."""
    if not jnp.issubdtype(dtype, jnp.inexact):
        return np.dtype(np.float64)
    return np.dtype(jnp.promote_types(dtype, jnp.float32))


def shapes_of(leaves: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf, by its path."""
    return {path: tuple(np.shape(leaf)) for path, leaf in leaves.items()}


def told_of(change: Change) -> str:
    """Say what an adapter did to a leaf."""
    ranks = sorted({low.update.rank for low in change.lows})
    parts = ["replaced"] if change.wholes else []
    if ranks:
        is_dora = any(low.update.magnitude is not None for low in change.lows)
        kind = "DoRA" if is_dora else "an update"
        parts.append(f"{kind} of rank {', '.join(map(str, ranks))} folded in")
    return " and ".join([*parts, *(["a bias added"] if change.offsets else [])])
