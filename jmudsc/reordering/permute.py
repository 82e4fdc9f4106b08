"""Permute: units of variables in another order, which computes the same function.

The convention is `new = old[perm]`. A nested label has one row per unit of its outer
labels, in their *old* order: `new[u, k] = old[p[u], q[p[u], k]]`. So the assignment
that brings permuted variables back onto the old ones is the permutation itself.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.keys import check_key
from jmudsc.reordering.blocks import Block, map_blocks, placed
from jmudsc.reordering.transport import form_of, LeafForm, names_in_leaf, take_units
from jmudsc.sharding import sharding_of
from jmudsc.spec.check_variables import check_covers
from jmudsc.spec.permutation_spec import PermutationSpec


def random_permutations(spec: PermutationSpec, key: jax.Array) -> dict[str, np.ndarray]:
    """Draw a random element of the symmetry group.

    Args:
        spec: the permutation spec.
        key: a PRNG key; the same key gives the same permutations.

    Returns:
        Per label `int32[*outer units, units]`, each row a permutation.
    """
    check_key("random_permutations", key)
    shapes = {name: spec.row_shape(name) for name in spec.labels}
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    draws = np.asarray(jax.random.bits(key, (total,), jnp.uint32))
    perms, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        ranks = draws[start : start + size].reshape(shape)
        if spec.labels[name].fixed:
            ranks = np.zeros_like(ranks)
        perms[name] = ranks.argsort(axis=-1, kind="stable").astype(np.int32)
        start += size
    return perms


def identity(spec: PermutationSpec) -> dict[str, np.ndarray]:
    """Return the permutations that leave everything in place.

    Args:
        spec: the permutation spec.

    Returns:
        Per label `int32[*outer units, units]`.
    """
    return {
        name: np.broadcast_to(
            np.arange(label.size, dtype=np.int32), spec.row_shape(name)
        )
        for name, label in spec.labels.items()
    }


def permute(
    spec: PermutationSpec, variables: PyTree, perms: Mapping[str, np.ndarray]
) -> PyTree:
    """Permute the units of variables; the network computes the same function.

    Args:
        spec: the permutation spec.
        variables: the variables to permute.
        perms: label -> `int32[*outer units, units]`, `new = old[perm]`; a label that
            is missing stays in place.

    Returns:
        Variables of the same structure, shapes, dtypes and shardings.

    Raises:
        ValueError: if the spec does not fit the variables, a label is unknown, or a row
            is not a permutation.
    """
    leaves = paths.flatten(variables)
    check_covers("permute", spec, leaves)
    _check_permutations(spec, perms)
    rows = identity(spec) | {name: np.asarray(row) for name, row in perms.items()}
    moved = {
        path: permute_leaf(spec, path, leaf, rows) for path, leaf in leaves.items()
    }
    return paths.unflatten(variables, moved)


def permute_leaf(
    spec: PermutationSpec, path: str, leaf: ArrayLike, rows: Mapping[str, np.ndarray]
) -> ArrayLike:
    """Gather the units of one leaf, `new = old[row]`, which need not be a permutation.

    Args:
        spec: the permutation spec.
        path: the leaf.
        leaf: its values.
        rows: label -> `int32[*outer units, units]`.

    Returns:
        The leaf itself if it has no labels, else an array of its shape.
    """
    names = names_in_leaf(spec, path)
    if not names:
        return leaf
    rows_here = [rows[name] for name in names]
    return _permute_leaf(leaf, rows_here, form_of(spec, path), sharding_of(leaf))


@functools.partial(jax.jit, static_argnames=("form", "sharding"))
def _permute_leaf(
    leaf: jax.Array,
    rows: list[jax.Array],
    form: LeafForm,
    sharding: NamedSharding | None,
) -> jax.Array:
    def visit(values: jax.Array, block: Block) -> jax.Array:
        for axis, lead, name in reversed(placed(block, dict(form.outer))):
            values = take_units(values, axis, lead, rows[int(name)])
        return values

    moved = map_blocks(leaf, form.axes, visit)
    return moved if sharding is None else lax.with_sharding_constraint(moved, sharding)


def _check_permutations(spec: PermutationSpec, perms: Mapping[str, Any]) -> None:
    problems = []
    for name, row in perms.items():
        if name not in spec.labels:
            hint = paths.did_you_mean(name, spec.labels)
            problems.append(f"{name}: is no label of the spec{hint}")
        elif np.shape(row) != spec.row_shape(name):
            needed = spec.row_shape(name)
            problems.append(f"{name}: expected shape {needed}, got {np.shape(row)}")
        elif (np.sort(row, axis=-1) != np.arange(spec.labels[name].size)).any():
            last = spec.labels[name].size - 1
            problems.append(f"{name}: a row is no permutation of 0..{last}")
    if problems:
        raise ValueError(
            "permute: expected permutations that fit the spec, got others:\n"
            f"{paths.listed(problems)}\nDraw them with random_permutations(spec, key)."
        )
