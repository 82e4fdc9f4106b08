"""Combine: bring every model to the merged order and average.

Leaves are few passes over memory each, so they are merged on the host, where nothing is
compiled; those that are spread over devices are merged where they are, by one program
for each form of a leaf.
"""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.lazy import LazyArray, present
from jmudsc.reordering.blocks import library_of, Values
from jmudsc.reordering.transport import (
    form_of,
    LeafForm,
    Move,
    move_leaf,
    moves_of,
    names_in_leaf,
)
from jmudsc.sharding import from_host, sharding_of, to_host
from jmudsc.spec.check_variables import check_covers, check_same
from jmudsc.spec.permutation_spec import PermutationSpec

# (the values of all models in the merged order, their shares) -> the merged values, of
# the shape of each; used under `jit`.
Average = Callable[[Sequence[Any], Sequence[Any]], Any]


def weighted_mean(values: Sequence[Values], shares: Sequence[Any]) -> Any:
    """Average arrays of one shape.

    Args:
        values: one array per model.
        shares: the share of each model, summing to 1.
    """
    return functools.reduce(
        operator.add, [share * x for share, x in zip(shares, values, strict=True)]
    )


def combine(
    spec: PermutationSpec,
    models: Sequence[PyTree],
    assignment: Mapping[str, np.ndarray],
    weights: Sequence[float] | None = None,
    average: Average = weighted_mean,
) -> PyTree:
    """Merge the variables of models under an assignment.

    Every axis that produces a label (the outgoing axis of a kernel, a bias, a norm's
    scale, a running statistic) becomes the weighted mean over the units that share a
    merged unit; every axis that consumes it becomes their sum; then the models are
    averaged (Xu et al. 2024, arXiv:2403.01753, eq. 2). For a one-to-one assignment this
    is the weighted average of permuted variables.

    Args:
        spec: the permutation spec.
        models: the variables of each model.
        assignment: label -> `int32[models, *outer units, units]`.
        weights: the share of each model, at least 0, divided by their sum; None for
            equal shares.
        average: makes one array of those of all models, once they are in the merged
            order; the same function for every leaf.

    Returns:
        Variables of the structure, shapes, dtypes and shardings of `models[0]`; of lazy
        arrays, where its leaves are, which are merged whenever they are read. Leaves
        that are not floating-point are taken from the first model where the models
        agree, rounded means where they are integers that differ, else the first
        model's.

    Raises:
        ValueError: if the models differ, the spec does not fit them, or an assignment
            or the weights have the wrong shape or values.
    """
    check_same("combine", models)
    leaves = [paths.flatten(model) for model in models]
    check_covers("combine", spec, leaves[0])
    shares = shares_of("combine", weights, len(models))
    check_assignment("combine", spec, assignment, len(models))
    moves = {
        name: moves_of(np.asarray(assignment[name]), shares) for name in spec.labels
    }

    def merged(path: str) -> jax.Array:
        values = [present(model[path]) for model in leaves]
        return combine_leaf(spec, path, values, moves, shares, average)

    def lazily(path: str, leaf: LazyArray) -> LazyArray:
        return replace(
            leaf,
            name=path,
            fetch=lambda names: {name: np.asarray(merged(name)) for name in names},
        )

    combined = {
        path: lazily(path, leaf) if isinstance(leaf, LazyArray) else merged(path)
        for path, leaf in leaves[0].items()
    }
    return paths.unflatten(models[0], combined)


def combine_leaf(
    spec: PermutationSpec,
    path: str,
    values: Sequence[ArrayLike],
    moves: Mapping[str, Sequence[Move]],
    shares: tuple[float, ...],
    average: Average = weighted_mean,
) -> jax.Array:
    """Merge one leaf, or arrays that have the axes of one, as `combine` does.

    Args:
        spec: the permutation spec.
        path: the leaf.
        values: one array per model.
        moves: per label one move per model.
        shares: the share of each model, summing to 1.
        average: as for `combine`.

    Returns:
        An array of the shape, dtype and sharding of the first.
    """
    names = names_in_leaf(spec, path)
    moves_here = [[moves[name][i] for name in names] for i in range(len(values))]
    form, consumed = form_of(spec, path), consumed_axes(spec, path)
    sharding = sharding_of(values[0])
    if sharding is None and average is weighted_mean:
        merge = functools.partial(_merged, form=form, consumed=consumed)
        return _on_host(merge, values, moves_here, shares)
    return _where_they_are(
        list(values), moves_here, shares, form, consumed, sharding, average
    )


def shares_of(
    where: str, weights: Sequence[float] | None, models: int
) -> tuple[float, ...]:
    """Normalise the weights of the models.

    Args:
        where: the caller, named in the error.
        weights: one per model, or None for equal weights.
        models: number of models.

    Returns:
        One share per model, summing to 1.

    Raises:
        ValueError: if there is not one finite weight >= 0 per model, or all are 0.
    """
    if weights is None:
        return (1 / models,) * models
    values = np.asarray(weights, float)
    if values.shape != (models,) or not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(
            f"{where}: expected {models} finite weights of at least 0, one per model, "
            f"got {list(weights)}. Leave them out for equal shares."
        )
    if values.sum() == 0:
        raise ValueError(
            f"{where}: expected a weight above 0, got {list(weights)}. Leave them out "
            "for equal shares."
        )
    return tuple(float(value) for value in values / values.sum())


def check_assignment(
    where: str, spec: PermutationSpec, assignment: Mapping[str, np.ndarray], models: int
) -> None:
    """Check that an assignment has a row for every label, model and outer unit.

    Args:
        where: the caller, named in the error.
        spec: the permutation spec.
        assignment: label -> `int32[models, *outer units, units]`.
        models: number of models.

    Raises:
        ValueError: listing every label that is missing or does not fit.
    """
    problems = []
    for name, label in spec.labels.items():
        if name not in assignment:
            problems.append(f"{name}: is missing")
            continue
        row = np.asarray(assignment[name])
        needed = (models, *spec.row_shape(name))
        if row.shape != needed or not np.issubdtype(row.dtype, np.integer):
            problems.append(
                f"{name}: expected int{list(needed)}, got {row.dtype}{list(row.shape)}"
            )
        elif row.min() < 0 or row.max() >= label.size:
            problems.append(
                f"{name}: expected merged units in 0..{label.size - 1}, got "
                f"{row.min()}..{row.max()}"
            )
    problems += [
        f"{name}: is no label of the spec{paths.did_you_mean(name, spec.labels)}"
        for name in assignment
        if name not in spec.labels
    ]
    if problems:
        raise ValueError(
            f"{where}: expected an assignment that fits the spec, got another:\n"
            f"{paths.listed(problems)}\nPass the assignment that match returned for "
            "this spec."
        )


def consumed_axes(spec: PermutationSpec, path: str) -> tuple[bool, ...]:
    """Return for each axis of a leaf whether a contraction sums over it."""
    return tuple((path, axis) in spec.consumed for axis in range(len(spec.axes[path])))


@functools.partial(jax.jit, static_argnames=("form", "consumed", "sharding", "average"))
def _where_they_are(
    leaves: list[jax.Array],
    moves: list[list[Move]],
    shares: tuple[ArrayLike, ...],
    form: LeafForm,
    consumed: tuple[bool, ...],
    sharding: NamedSharding | None,
    average: Average,
) -> jax.Array:
    merged = _merged(leaves, moves, shares, form, consumed, average)
    return (
        merged if sharding is None else lax.with_sharding_constraint(merged, sharding)
    )


def _on_host(
    merge: Callable[..., np.ndarray],
    leaves: Sequence[ArrayLike],
    moves: list[list[Move]],
    shares: tuple[float, ...],
) -> jax.Array:
    first = leaves[0]
    dtype = jnp.result_type(first)
    if not jnp.issubdtype(dtype, jnp.number):
        return first if isinstance(first, jax.Array) else jax.device_put(first)
    here = [to_host(leaf).astype(dtype, copy=False) for leaf in leaves]
    return from_host(merge(here, moves, shares), first)


def _merged(
    leaves: list[Any],
    moves: list[list[Move]],
    shares: tuple[ArrayLike, ...],
    form: LeafForm,
    consumed: tuple[bool, ...],
    average: Average = weighted_mean,
) -> Any:
    dtype = leaves[0].dtype
    if not jnp.issubdtype(dtype, jnp.number) or not leaves[0].size:
        return leaves[0]
    library = library_of(leaves[0])
    inexact = jnp.issubdtype(dtype, jnp.inexact)
    wide = dtype if inexact and dtype.itemsize >= 4 else np.dtype(np.float32)
    moved = [
        move_leaf(leaf.astype(wide), model, form, consumed)
        for leaf, model in zip(leaves, moves, strict=True)
    ]
    mean = average(moved, [library.asarray(share, wide) for share in shares])
    if inexact:  # three thirds are not one
        return library.where(_agree(moved), moved[0], mean).astype(dtype)
    rounded = library.round(mean).astype(dtype)
    return library.where(_agree(leaves), leaves[0], rounded)


def _agree(arrays: Sequence[Any]) -> Any:
    return functools.reduce(operator.and_, [x == arrays[0] for x in arrays])
