"""Slicing: primitives that cut arrays into parts and put parts together.

Where the parts are single positions of an axis (a kernel of three stacked ones), the
other axes may be something else at every position: they become families.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jmudsc.derivation.rules import generic_layouts
from jmudsc.derivation.rules.common import (
    BY_POSITION,
    by_position,
    drop,
    negligible,
    pin_all,
    regroup,
    same_axes,
    shape_of,
    those_left,
    tie,
)
from jmudsc.derivation.rules.positions import forget_all, hand_on, if_single
from jmudsc.derivation.rules.primitive import (
    AxisTerms,
    Known,
    Lookup,
    Moves,
    Outcome,
    Primitive,
    Rule,
)
from jmudsc.derivation.terms.axis_terms import MOST_MEMBERS, Term, Terms, TOLD_APART
from jmudsc.derivation.terms.values import Columns, Picked, Tag, Value


def concatenate(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Concatenate along one axis, tie the others.

    Along an axis that is fixed anyway (a stack) the others may differ by position.
    """
    return _joined(terms, int(eqn.params["dimension"]), ins)


def stack(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Put values of one shape along a new axis."""
    along = int(eqn.params["axis"])
    ins = [[*axes[:along], terms.leaf(1), *axes[along:]] for axes in ins]
    return _joined(terms, along, ins)


def split(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Cut one axis into parts, carry the others."""
    along, start = int(eqn.params["axis"]), 0
    outs = []
    for size in map(int, eqn.params["sizes"]):
        outs.append(_part(terms, ins[0], along, start, size))
        start += size
    return outs


def unstack(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Take every position of one axis on its own."""
    along = int(eqn.params["axis"])
    parts = [_part(terms, ins[0], along, i, 1) for i in range(len(eqn.outvars))]
    return [drop(part, (along,)) for part in parts]


def slice_(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Cut a contiguous part out of every axis, or every n-th position of all."""
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    out = ins[0]
    for number, bounds in enumerate(zip(starts, limits, strides, strict=True)):
        start, limit, stride = map(int, bounds)
        whole, size = terms.size(out[number]), -(-(limit - start) // stride)
        if stride == 1:
            out = _part(terms, out, number, start, size)
        elif start < stride and size * stride == whole:
            out = _every(terms, out, number, start, stride)
        else:
            fixed = by_position(terms, out[number], size, eqn)
            out = [*out[:number], fixed, *out[number + 1 :]]
    return [out]


def dynamic_slice(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Carry axes taken whole; the others are fixed."""
    sizes = zip(ins[0], eqn.params["slice_sizes"], strict=True)
    return [
        [a if terms.size(a) == n else by_position(terms, a, n, eqn) for a, n in sizes]
    ]


def dynamic_update_slice(
    terms: Terms, eqn: Any, ins: list[AxisTerms]
) -> list[AxisTerms]:
    """Tie axes written whole; the others are fixed."""
    for axis, new in zip(ins[0], ins[1], strict=True):
        if terms.size(axis) == terms.size(new):
            terms.unify(axis, new)
        else:
            pin_all(terms, (axis, new), BY_POSITION.format(eqn.primitive.name))
    return [ins[0]]


def pad(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Concatenate constants before and after; interior or negative padding fixes."""
    out = []
    for axis, (low, high, interior) in zip(
        ins[0], eqn.params["padding_config"], strict=True
    ):
        if (low, high, interior) == (0, 0, 0):
            out.append(axis)
        elif interior == 0 and low >= 0 and high >= 0:
            ends = terms.leaf(int(low)), terms.leaf(int(high))
            out.append(terms.concat([ends[0], axis, ends[1]]))
        else:
            out.append(
                by_position(terms, axis, shape_of(eqn.outvars[0])[len(out)], eqn)
            )
    return [out]


def tile(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Repeats run slowest, and are all alike."""
    pairs = zip(ins[0], eqn.params["reps"], strict=True)
    return [[terms.product((terms.leaf(n), axis)) for axis, n in pairs]]


def _part(
    terms: Terms, axes: AxisTerms, along: int, start: int, size: int
) -> AxisTerms:
    """Take positions start..start+size of one axis.

    Where the axis is fixed anyway, or taken one position at a time, the other axes may
    differ by position: they are seen as what they are at those taken.
    """
    axis, whole = axes[along], terms.size(axes[along])
    if size == whole:
        return axes
    if size == 0:
        return [*axes[:along], terms.leaf(0), *axes[along + 1 :]]
    if size != 1 and not _is_told_apart(terms, axis):
        part = _cut(terms, axis, (start, size, whole - start - size))[1]
        return [*axes[:along], part, *axes[along + 1 :]]
    terms.pin(axis, TOLD_APART)
    part = terms.fixed(size, TOLD_APART)
    if not _is_told_apart(terms, axis) or whole > MOST_MEMBERS:
        return [*axes[:along], part, *axes[along + 1 :]]
    out = []
    for number, other in enumerate(axes):
        places = range(start, start + size)
        if number == along or not any(
            terms.reason(a) is None for a in terms.leaves(other)
        ):
            out.append(part if number == along else other)
        else:
            out.append(
                terms.family(part, [terms.member(other, axis, p) for p in places])
            )
    return out


def _every(
    terms: Terms, axes: AxisTerms, along: int, start: int, stride: int
) -> AxisTerms:
    """Take one column of an axis laid out in rows of `stride` positions."""
    size = terms.size(axes[along]) // stride
    grid = regroup(terms, [axes[along]], [size, stride])
    axes = [*axes[:along], *grid, *axes[along + 1 :]]
    return drop(_part(terms, axes, along + 1, start, 1), (along + 1,))


def _joined(terms: Terms, along: int, ins: list[AxisTerms]) -> list[AxisTerms]:
    runs = [axes[along] for axes in ins]
    total = sum(map(terms.size, runs))
    if all(_is_told_apart(terms, run) for run in runs) and total <= MOST_MEMBERS:
        whole = terms.fixed(total, TOLD_APART)
        out = [_along(terms, whole, number, ins, runs) for number in range(len(ins[0]))]
        out[along] = whole
        return [out]
    out = [
        tie(terms, max(map(terms.size, same)), same)
        for number, same in enumerate(zip(*ins, strict=True))
        if number != along
    ]
    out.insert(along, terms.concat(runs))
    return [out]


def _along(
    terms: Terms, whole: Term, number: int, ins: list[AxisTerms], runs: AxisTerms
) -> Term:
    """What an axis is at every position of the axis joined along."""
    places = [
        terms.member(axes[number], run, position)
        if terms.size(run) > 1
        else axes[number]
        for axes, run in zip(ins, runs, strict=True)
        for position in range(terms.size(run))
    ]
    return terms.family(whole, places)


def _is_told_apart(terms: Terms, axis: Term) -> bool:
    """Whether the positions of an axis are picked one by one, as those of a stack."""
    return terms.size(axis) == 1 or terms.reason(axis) == TOLD_APART


def _cut(terms: Terms, axis: Term, sizes: Sequence[int]) -> AxisTerms:
    parts = [terms.leaf(size, origin=[axis]) for size in sizes]
    terms.unify(axis, terms.concat(parts))
    return parts


@if_single
def _put_side_by_side(
    rule: Rule,
    terms: Terms,
    eqn: Any,
    ins: list[AxisTerms],
    tags: Sequence[Known],
) -> Outcome:
    """Columns of positions put side by side along the last axis stay what they are."""
    if not _joins_columns(eqn):
        return forget_all(rule, terms, eqn, ins, tags)
    single = tuple(tag for tag in tags if isinstance(tag, Tag) or tag is None)
    return rule(terms, eqn, ins), [Columns(single)]


def _joins_columns(eqn: Any) -> bool:
    """Whether an equation puts values of one column each side by side."""
    last = len(shape_of(eqn.outvars[0])) - 1
    return eqn.params["dimension"] == last and all(
        shape_of(var)[last] == 1 for var in eqn.invars
    )


def _taken_whole(eqn: Any, number: int) -> Mapping[int, int]:
    if number > 0:
        return {}
    sizes = eqn.params["slice_sizes"]
    pairs = enumerate(zip(shape_of(eqn.invars[0]), sizes, strict=True))
    return {axis: axis for axis, (whole, size) in pairs if whole == size}


def _beside_unstacked(eqn: Any, number: int) -> Mapping[int, int]:
    return those_left(shape_of(eqn.invars[number]), (int(eqn.params["axis"]),))


def _starts(eqn: Any) -> tuple[Lookup, ...]:
    """Every start says which position is taken, where it is one of several."""
    sizes = zip(eqn.params["slice_sizes"], shape_of(eqn.invars[0]), strict=True)
    return tuple(
        Lookup(source=0, axis=axis, index=1 + axis)
        for axis, (size, whole) in enumerate(sizes)
        if size == 1 < whole
    )


def _met_in_output(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], picked: Picked
) -> list[Value]:
    return [_cut_along(terms, value, (*ins, *outs)) for value in outs]


def _met_in_operand(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], picked: Picked
) -> list[Value]:
    return [_cut_along(terms, value, (*ins, *outs)) for value in ins[:1]]


def _cut_along(terms: Terms, value: Value, others: Sequence[Value]) -> Value:
    """A value along axes that are cut, or put together of parts.

    What a unit went with on such an axis may be another unit there on the other side.
    """
    apart = frozenset(
        number
        for number, axis in enumerate(value.axes)
        for other in others
        if other.axes and terms.size(other.axes[number]) != terms.size(axis)
    )
    return Value(value.axes, picks=value.picks, apart=apart)


PRIMITIVES = (
    Primitive(
        "concatenate",
        rule=concatenate,
        positions=_put_side_by_side,
        meets=_met_in_output,
        genericity=generic_layouts.joined("dimension"),
        joins_columns=_joins_columns,
        cost=negligible,
    ),
    Primitive("pad", rule=pad, meets=_met_in_output, cost=negligible),
    Primitive(
        "slice",
        rule=slice_,
        positions=hand_on,
        meets=_met_in_operand,
        genericity=generic_layouts.laid_out(same_axes),
        entries=Moves.TAKEN,
        cost=negligible,
    ),
    Primitive(
        "split",
        rule=split,
        positions=hand_on,
        meets=_met_in_operand,
        genericity=generic_layouts.laid_out(same_axes),
        cost=negligible,
    ),
    Primitive(
        "stack", rule=stack, genericity=generic_layouts.joined("axis"), cost=negligible
    ),
    Primitive("tile", rule=tile, meets=_met_in_output, cost=negligible),
    Primitive(
        "unstack",
        rule=unstack,
        genericity=generic_layouts.laid_out(_beside_unstacked),
        cost=negligible,
    ),
    Primitive(
        "dynamic_slice",
        rule=dynamic_slice,
        axis_map=_taken_whole,
        lookups=_starts,
        genericity=generic_layouts.laid_out(same_axes),
        entries=Moves.TAKEN,
        cost=negligible,
    ),
    Primitive("dynamic_update_slice", rule=dynamic_update_slice, cost=negligible),
)
