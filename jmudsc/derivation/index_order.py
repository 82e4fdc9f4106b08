"""Picks: axes that are in the order of one unit of a label, and which unit that is.

After `kernel[chosen]`, with one kernel per expert, hidden units are in the order of the
expert that was chosen, which differs from input to input. Two such axes may meet (be
multiplied, summed over together) if both are in the order of experts picked by the same
index value along the same axes. A pick says so of one axis of a value; it is carried
through operations that keep axes apart, and forgotten by all others, which is sound: a
label is nested in another only if it goes with it in every value.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

from jmudsc.derivation.program import shape_of
from jmudsc.derivation.rules.elementwise import (
    contraction,
    cumulative,
    elementwise,
    product_axes,
    reduce,
    RULES,
)
from jmudsc.derivation.terms.values import Pick, Picks, Place, Value
from jmudsc.derivation.value_numbering import Numbers

AxisMap = Mapping[int, int]  # axis of an operand -> axis of the output
PickSet = frozenset[Pick]


def after(
    eqn: Any, ins: Sequence[Value], numbers: Numbers, places: Mapping[int, Place]
) -> Picks:
    """Return the picks of the output of an equation.

    Args:
        eqn: a jaxpr equation.
        ins: its operands.
        numbers: the numbers of values.
        places: where values can be read, by number.

    Returns:
        The picks of its only output; empty if there are none.
    """
    source, new = made(eqn, ins, numbers, places)
    if not new and not any(value.picks for value in ins):
        return ()
    maps = [axis_map(eqn, number) for number in range(len(ins))]
    return carried(ins, maps, len(shape_of(eqn.outvars[0])), source, new)


def carried(
    ins: Sequence[Value],
    maps: Sequence[AxisMap],
    rank: int,
    source: int = 0,
    made: PickSet = frozenset(),
) -> Picks:
    """Return the picks of a value that is put together from others.

    Args:
        ins: the others.
        maps: for each of them, which of its axes is which axis of the value.
        rank: number of axes of the value.
        source: the one that is picked from.
        made: what is picked, for each of its axes.

    Returns:
        The picks; empty if there are none.
    """
    out = [frozenset()] * rank
    for number, (value, where) in enumerate(zip(ins, maps, strict=True)):
        new = made if number == source else frozenset()
        for axis, place in where.items():
            out[place] |= _moved(value.picks_on(axis), where) | new
    return tuple(out) if any(out) else ()


def made(
    eqn: Any, ins: Sequence[Value], numbers: Numbers, places: Mapping[int, Place]
) -> tuple[int, PickSet]:
    """Return what an equation picks by an index, one position of an axis at a time.

    Args:
        eqn: a jaxpr equation.
        ins: its operands.
        numbers: the numbers of values.
        places: where values can be read, by number.

    Returns:
        Which operand it picks from, and the picks.
    """
    sizes = eqn.params.get("slice_sizes", ())
    match eqn.primitive.name:
        case "dynamic_slice":
            indices = [(axis, value.number) for axis, value in enumerate(ins[1:])]
            along = ()
        case "gather":
            axes = eqn.params["dimension_numbers"].start_index_map
            columns = numbers.columns(ins[1].number, len(axes))
            indices, along = list(zip(axes, columns, strict=True)), _index_axes(eqn)
        case "ragged_dot_general":  # every row meets the kernel of its run
            runs = numbers.runs(ins[2].number)
            return 1, frozenset([Pick(ins[1].axes[0], runs, (0,), None)])
        case _:
            return 0, frozenset()
    shape = shape_of(eqn.invars[0])
    return 0, frozenset(
        Pick(ins[0].axes[axis], index, along, places.get(index))
        for axis, index in indices
        if sizes[axis] == 1 < shape[axis]
    )


def _moved(picks: PickSet, where: AxisMap) -> PickSet:
    """Renumber the axes of picks; one that loses an axis is forgotten."""
    return frozenset(
        Pick(
            pick.term,
            pick.index,
            tuple(None if axis is None else where[axis] for axis in pick.axes),
            pick.place,
        )
        for pick in picks
        if all(axis is None or axis in where for axis in pick.axes)
    )


def axis_map(eqn: Any, number: int) -> AxisMap:
    """Say where the axes of an operand are in the output.

    Args:
        eqn: a jaxpr equation.
        number: which operand.

    Returns:
        The axes of the operand that come out unmixed with one another; none for a
        primitive that is not followed.
    """
    name, params = eqn.primitive.name, eqn.params
    shape = shape_of(eqn.invars[number])
    rule = RULES.get(name)
    if rule is elementwise:
        return {axis: axis for axis in range(len(shape))}
    if rule is reduce:
        return _without(shape, tuple(map(int, params["axes"])))
    if rule is cumulative:
        return _beside(shape, params["axis"])
    match name:
        case "sort":
            return _beside(shape, params["dimension"])
        case "top_k":
            return _beside(shape, params.get("axis", len(shape) - 1))
        case "squeeze":
            return _without(shape, tuple(map(int, params["dimensions"])))
        case "broadcast_in_dim":
            return dict(enumerate(map(int, params["broadcast_dimensions"])))
        case "transpose":
            return {
                axis: new for new, axis in enumerate(map(int, params["permutation"]))
            }
        case "reshape":
            return _same_runs(shape, shape_of(eqn.outvars[0]))
        case "dynamic_slice" if number == 0:
            pairs = enumerate(zip(shape, params["slice_sizes"], strict=True))
            return {axis: axis for axis, (whole, size) in pairs if whole == size}
        case "gather" if number == 0:
            return _gathered_whole(eqn)
        case "dot_general" | "ragged_dot_general" if contraction(eqn) and number < 2:
            return _in_product(eqn, number)
        case "conv_general_dilated":
            numbers = params["dimension_numbers"]
            place = (numbers.lhs_spec[0], numbers.rhs_spec[0])[number]
            return {place: numbers.out_spec[number]}
    return {}


def _gathered_whole(eqn: Any) -> AxisMap:
    """Return where the axes of its operand are that a `gather` takes whole."""
    numbers = eqn.params["dimension_numbers"]
    shape, sizes = shape_of(eqn.invars[0]), eqn.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    pairs = zip(kept, map(int, numbers.offset_dims), strict=True)
    return {axis: new for axis, new in pairs if sizes[axis] == shape[axis]}


def _index_axes(eqn: Any) -> tuple[int | None, ...]:
    """Return along which axes of the output of a `gather` its index value varies."""
    offset = set(map(int, eqn.params["dimension_numbers"].offset_dims))
    rank = len(shape_of(eqn.outvars[0]))
    axes = [axis for axis in range(rank) if axis not in offset]
    shape = shape_of(eqn.invars[1])[:-1]
    return tuple(a if n > 1 else None for a, n in zip(axes, shape, strict=True))


def _without(shape: tuple[int, ...], gone: Sequence[SupportsIndex]) -> AxisMap:
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    return {axis: new for new, axis in enumerate(kept)}


def _beside(shape: tuple[int, ...], along: int) -> AxisMap:
    return {axis: axis for axis in range(len(shape)) if axis != along}


def _same_runs(before: tuple[int, ...], after: tuple[int, ...]) -> AxisMap:
    """Pair the axes that a reshape leaves as they are."""
    ends = {
        (math.prod(after[:new]), size): new
        for new, size in enumerate(after)
        if size > 1
    }
    found = {
        axis: ends.get((math.prod(before[:axis]), size))
        for axis, size in enumerate(before)
        if size > 1
    }
    return {axis: new for axis, new in found.items() if new is not None}


def _in_product(eqn: Any, number: int) -> AxisMap:
    contracted, batch = product_axes(eqn)
    group = (0,) if eqn.primitive.name == "ragged_dot_general" else ()
    ranks = [len(shape_of(var)) for var in eqn.invars[:2]]
    gone = [(*c, *b) for c, b in zip(contracted, batch, strict=True)]
    gone[1] += group
    free = [
        [axis for axis in range(rank) if axis not in out]
        for rank, out in zip(ranks, gone, strict=True)
    ]
    start = len(batch[0]) + (len(free[0]) if number else 0)
    where = {axis: new for new, axis in enumerate(batch[number])}
    return where | {axis: start + new for new, axis in enumerate(free[number])}
