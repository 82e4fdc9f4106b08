"""Permute: units of variables in another order, which computes the same function.

The convention is `new = old[perm]`. A nested label has one row per unit of its outer
labels, in their *old* order: `new[u, k] = old[p[u], q[p[u], k]]`. So the assignment
that brings permuted variables back onto the old ones is the permutation itself.
"""

import functools
import math
from collections.abc import Mapping, Sequence
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
from jmudsc.reordering.blocks import Block, map_blocks, placed, Values
from jmudsc.reordering.transport import form_of, LeafForm, names_in_leaf, take_units
from jmudsc.sharding import from_host, sharding_of, to_host
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
    return permutations_by(spec, np.asarray(_bits(key, draws_of(spec))))


def draws_of(spec: PermutationSpec) -> int:
    """Return how many random numbers a random element of the symmetry group takes."""
    return sum(math.prod(spec.row_shape(name)) for name in spec.labels)


def permutations_by(spec: PermutationSpec, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Turn random numbers into a random element of the symmetry group.

    Args:
        spec: the permutation spec.
        draws: `uint32[draws_of(spec)]`, independent and uniform.

    Returns:
        Per label `int32[*outer units, units]`, each row a permutation.
    """
    shapes = {name: spec.row_shape(name) for name in spec.labels}
    perms, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        ranks = draws[start : start + size].reshape(shape)
        if spec.labels[name].fixed:
            ranks = np.zeros_like(ranks)
        perms[name] = ranks.argsort(axis=-1, kind="stable").astype(np.int32)
        start += size
    return perms


@functools.partial(jax.jit, static_argnames="count")
def _bits(key: jax.Array, count: int) -> jax.Array:
    return jax.random.bits(key, (count,), jnp.uint32)


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
    form, sharding = form_of(spec, path), sharding_of(leaf)
    if sharding is not None:
        return _permute_where_it_is(leaf, rows_here, form, sharding)
    return from_host(_permuted(to_host(leaf), rows_here, form), leaf)


@functools.partial(jax.jit, static_argnames=("form", "sharding"))
def _permute_where_it_is(
    leaf: jax.Array, rows: list[jax.Array], form: LeafForm, sharding: NamedSharding
) -> jax.Array:
    return lax.with_sharding_constraint(_permuted(leaf, rows, form), sharding)


def _permuted(leaf: Values, rows: Sequence[ArrayLike], form: LeafForm) -> Any:
    def visit(values: Values, block: Block) -> Values:
        for axis, lead, name in reversed(placed(block, dict(form.outer))):
            values = take_units(values, axis, lead, rows[int(name)])
        return values

    return map_blocks(leaf, form.axes, visit)


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
