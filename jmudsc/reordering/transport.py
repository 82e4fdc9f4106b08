"""Transport: bring the units of one model to the merged order, axis by axis.

This is where an assignment becomes array operations. A move is a gather where every
merged unit has one member in the model, a scatter-and-sum where it has not. Arrays of
numpy are moved on the host, those of JAX where they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jmudsc.reordering.blocks import Block, library_of, map_blocks, placed, Values
from jmudsc.spec.axes import Axis
from jmudsc.spec.permutation_spec import PermutationSpec

# Every label of a leaf with the labels it is nested in, outermost first.
OuterLabels = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class LeafForm:
    """What the axes of a leaf are, but for what its labels are called.

    Each label has the number of its position in `names_in_leaf` for a name, so that
    leaves of one form can share one compiled function.

    Attributes:
        axes: one expression per axis.
        outer: every label of the leaf with its outer labels.
    """

    axes: tuple[Axis, ...]
    outer: OuterLabels


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Move:
    """How the units of one label of one model reach their merged units.

    Attributes:
        index: `int32[*outer units, units]`: where `scale` is None the member of each
            merged unit, otherwise the merged unit of each unit.
        scale: `float32[*outer units, units]`, one over the weight of the units that
            went to each merged unit, summed over the models; None for a permutation.
    """

    index: ArrayLike
    scale: ArrayLike | None


def moves_of(assignment: np.ndarray, weights: Sequence[float]) -> list[Move]:
    """Turn the assignment of a label into one move per model.

    Args:
        assignment: `int32[models, *outer units, units]`.
        weights: the share of each model, summing to 1.

    Returns:
        One move per model.
    """
    order = assignment.argsort(axis=-1, kind="stable").astype(np.int32)
    in_order = np.take_along_axis(assignment, order, axis=-1)
    if (in_order == np.arange(assignment.shape[-1])).all():
        return [Move(index, None) for index in order]
    total = np.zeros(assignment.shape[1:])
    for row, weight in zip(assignment, weights, strict=True):
        rows, sums = row.reshape(-1, row.shape[-1]), total.reshape(-1, row.shape[-1])
        np.add.at(sums, (np.arange(len(rows))[:, None], rows), weight)
    scale = (1 / np.where(total > 0, total, 1)).astype(np.float32)
    return [Move(row, scale) for row in assignment]


def move_units(
    block: Values, axis: int, lead: tuple[int, ...], move: Move, consumed: bool
) -> Values:
    """Bring one axis of a block of one model to the merged order.

    With U the one-hot matrix of the model's assignment and M = U divided by the weight
    that went to each merged unit, an axis that is summed over is multiplied by U, any
    other by M (Xu et al. 2024, arXiv:2403.01753, eq. 2).

    Args:
        block: any shape.
        axis: the axis of the units.
        lead: the axes of the outer labels' units, already in the merged order.
        move: the move of this model.
        consumed: whether the axis is summed over.

    Returns:
        A block of the same shape.
    """
    if move.scale is None:
        return take_units(block, axis, lead, move.index)
    moved = sum_units(block, axis, lead, move.index)
    if consumed:
        return moved
    moved *= _aligned(block, axis, lead, move.scale)  # of numpy in place: it is new
    return moved


def move_some_units(
    block: np.ndarray, axis: int, move: Move, consumed: bool, merged: np.ndarray
) -> np.ndarray:
    """Bring to the merged order what goes to some merged units, as `move_units` does.

    Args:
        block: any shape, on the host.
        axis: the axis of the units, which are nested in no others.
        move: the move of this model.
        consumed: whether the axis is summed over.
        merged: numbers of merged units.

    Returns:
        A block that has these along the axis, and nothing else.
    """
    index = np.asarray(move.index)
    if move.scale is None:
        return block.take(index[merged], axis=axis)
    place = np.full(len(index), -1)
    place[merged] = np.arange(len(merged))
    members = np.flatnonzero(place[index] >= 0)
    rows = np.moveaxis(block.take(members, axis=axis), axis, 0)
    sums = _sum_rows(rows, place[index[members]], len(merged))
    moved = np.moveaxis(sums, 0, axis)
    if not consumed:
        moved *= _aligned(moved, axis, (), np.asarray(move.scale)[merged])
    return moved


def move_leaf(
    leaf: Values, moves: Sequence[Move], form: LeafForm, consumed: tuple[bool, ...]
) -> Values:
    """Bring all axes of a leaf of one model to the merged order.

    Args:
        leaf: one axis per expression.
        moves: of this model, one per label of the leaf.
        form: the form of the leaf.
        consumed: for each axis whether it is summed over.

    Returns:
        A leaf of the same shape.
    """

    def visit(values: Values, block: Block) -> Values:
        for axis, lead, name in placed(block, dict(form.outer)):
            flag = consumed[block.origins[axis]]
            values = move_units(values, axis, lead, moves[int(name)], flag)
        return values

    return map_blocks(leaf, form.axes, visit)


def names_in_leaf(spec: PermutationSpec, path: str) -> list[str]:
    """Return the labels on a leaf and their outer labels, in the order they are met.

    Outer labels come before what is nested in them. The order does not depend on what
    labels are called, so that leaves of one form can share one compiled function.

    Args:
        spec: the permutation spec.
        path: the leaf.
    """
    here = [name for axis in spec.axes[path] for name in axis.labels()]
    met = [met for name in here for met in (*spec.labels[name].parents, name)]
    return list(dict.fromkeys(met))


def form_of(spec: PermutationSpec, path: str) -> LeafForm:
    """Return the form of a leaf: what its axes are, but for what labels are called.

    Args:
        spec: the permutation spec.
        path: the leaf.
    """
    names = names_in_leaf(spec, path)
    number = {name: str(position) for position, name in enumerate(names)}
    axes = tuple(axis.renamed(number) for axis in spec.axes[path])
    outer = tuple(
        (number[name], tuple(number[o] for o in spec.labels[name].parents))
        for name in names
    )
    return LeafForm(axes, outer)


def take_units(
    block: Values, axis: int, lead: tuple[int, ...], index: ArrayLike
) -> Values:
    """Gather along an axis: `new[..., k, ...] = old[..., index[k], ...]`.

    Args:
        block: any shape.
        axis: the axis of the units.
        lead: the axes of the outer labels' units.
        index: shape (*outer units, units).

    Returns:
        A block of the same shape.
    """
    if isinstance(block, np.ndarray):
        if not lead:
            return block.take(np.asarray(index), axis=axis)
        return np.take_along_axis(block, _aligned(block, axis, lead, index), axis=axis)
    # No index is out of bounds, and code for those that are takes long to compile.
    if not lead:
        return jnp.take(block, jnp.asarray(index), axis=axis, mode="clip")
    index = _aligned(block, axis, lead, index)
    return jnp.take_along_axis(block, index, axis=axis, mode="clip")


def sum_units(
    block: Values, axis: int, lead: tuple[int, ...], target: ArrayLike
) -> Values:
    """Scatter along an axis and sum: `new[..., target[j], ...] += old[..., j, ...]`.

    Args:
        block: any shape.
        axis: the axis of the units.
        lead: the axes of the outer labels' units.
        target: shape (*outer units, units), values in [0, units).

    Returns:
        A block of the same shape.
    """
    front = tuple(range(len(lead) + 1))
    library = library_of(block)
    moved = library.moveaxis(block, (*lead, axis), front)
    flat = moved.reshape(-1, *moved.shape[len(lead) + 1 :])
    units = block.shape[axis]
    to = library.arange(len(flat)) // units * units + library.ravel(target)
    is_here = isinstance(flat, np.ndarray)
    sums = (
        _sum_rows(flat, to, len(flat))
        if is_here
        else jax.ops.segment_sum(flat, to, len(flat))
    )
    return library.moveaxis(sums.reshape(moved.shape), front, (*lead, axis))


def _sum_rows(rows: np.ndarray, to: np.ndarray, count: int) -> np.ndarray:
    """Sum rows by where they go, in their order: first those first there, and so on."""
    if not len(rows):
        return np.zeros((count, *rows.shape[1:]), rows.dtype)
    rows = np.ascontiguousarray(rows)  # rows of scattered entries are slow to gather
    order = to.argsort(kind="stable")
    sorted_to = to[order]
    starts = np.searchsorted(sorted_to, sorted_to)
    turn = np.arange(len(to)) - starts  # how many go to the same place before a row
    first = np.zeros(count, int)
    first[to[order[turn == 0]]] = order[turn == 0]
    sums = rows.take(first, axis=0)
    sums[np.bincount(to, minlength=count) == 0] = 0
    for number in range(1, turn.max(initial=0) + 1):
        now = order[turn == number]
        sums[to[now]] += rows[now]
    return sums


def _aligned(block: Values, axis: int, lead: tuple[int, ...], values: ArrayLike) -> Any:
    """Give values of shape (*outer units, units) the axis order of a block."""
    order = sorted(range(len(lead) + 1), key=lambda i: (*lead, axis)[i])
    shape = [n if i in (*lead, axis) else 1 for i, n in enumerate(block.shape)]
    library = library_of(block)
    return library.transpose(library.asarray(values), order).reshape(shape)
