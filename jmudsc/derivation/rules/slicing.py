"""Rules of the primitives that cut arrays into parts and put parts together.

Where the parts are single positions of an axis (a kernel of three stacked ones), the
other axes may be something else at every position: they become families.
"""

from collections.abc import Sequence
from typing import Any

from jmudsc.derivation.rules.common import (
    Axes,
    BY_POSITION,
    by_position,
    drop,
    pin_all,
    regroup,
    tie,
)
from jmudsc.derivation.terms.axis_terms import Terms, TOLD_APART

# Up to this many positions of an axis are told apart one by one.
_MOST_MEMBERS = 256


def concatenate(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Concatenate along one axis, tie the others.

    Along an axis that is fixed anyway (a stack) the others may differ by position.
    """
    return _joined(terms, int(eqn.params["dimension"]), ins)


def stack(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Put values of one shape along a new axis."""
    along = int(eqn.params["axis"])
    ins = [[*axes[:along], terms.leaf(1), *axes[along:]] for axes in ins]
    return _joined(terms, along, ins)


def split(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Cut one axis into parts, carry the others."""
    along, start = int(eqn.params["axis"]), 0
    outs = []
    for size in map(int, eqn.params["sizes"]):
        outs.append(_part(terms, ins[0], along, start, size))
        start += size
    return outs


def unstack(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Take every position of one axis on its own."""
    along = int(eqn.params["axis"])
    parts = [_part(terms, ins[0], along, i, 1) for i in range(len(eqn.outvars))]
    return [drop(part, (along,)) for part in parts]


def slice_(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Cut a contiguous part out of every axis, or every n-th position of all."""
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    out = ins[0]
    for number, (start, limit, stride) in enumerate(
        zip(starts, limits, strides, strict=True)
    ):
        whole, size = terms.size(out[number]), -(-(limit - start) // stride)
        if stride == 1:
            out = _part(terms, out, number, start, size)
        elif start < stride and size * stride == whole:
            out = _every(terms, out, number, start, stride)
        else:
            fixed = by_position(terms, out[number], size, eqn)
            out = [*out[:number], fixed, *out[number + 1 :]]
    return [out]


def dynamic_slice(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Carry axes taken whole; the others are fixed."""
    sizes = zip(ins[0], eqn.params["slice_sizes"], strict=True)
    return [
        [a if terms.size(a) == n else by_position(terms, a, n, eqn) for a, n in sizes]
    ]


def dynamic_update_slice(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Tie axes written whole; the others are fixed."""
    for axis, new in zip(ins[0], ins[1], strict=True):
        if terms.size(axis) == terms.size(new):
            terms.unify(axis, new)
        else:
            pin_all(terms, (axis, new), BY_POSITION.format(eqn.primitive.name))
    return [ins[0]]


def pad(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
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
                by_position(terms, axis, eqn.outvars[0].aval.shape[len(out)], eqn)
            )
    return [out]


def tile(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Repeats run slowest, and are all alike."""
    pairs = zip(ins[0], eqn.params["reps"], strict=True)
    return [[terms.product((terms.leaf(n), axis)) for axis, n in pairs]]


def _part(terms: Terms, axes: Axes, along: int, start: int, size: int) -> Axes:
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
    if not _is_told_apart(terms, axis) or whole > _MOST_MEMBERS:
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


def _every(terms: Terms, axes: Axes, along: int, start: int, stride: int) -> Axes:
    """Take one column of an axis laid out in rows of `stride` positions."""
    size = terms.size(axes[along]) // stride
    grid = regroup(terms, [axes[along]], [size, stride])
    axes = [*axes[:along], *grid, *axes[along + 1 :]]
    return drop(_part(terms, axes, along + 1, start, 1), (along + 1,))


def _joined(terms: Terms, along: int, ins: list[Axes]) -> list[Axes]:
    runs = [axes[along] for axes in ins]
    total = sum(map(terms.size, runs))
    if all(_is_told_apart(terms, run) for run in runs) and total <= _MOST_MEMBERS:
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
    terms: Terms, whole: int, number: int, ins: list[Axes], runs: list[int]
) -> int:
    """What an axis is at every position of the axis joined along."""
    places = [
        terms.member(axes[number], run, position)
        if terms.size(run) > 1
        else axes[number]
        for axes, run in zip(ins, runs, strict=True)
        for position in range(terms.size(run))
    ]
    return terms.family(whole, places)


def _is_told_apart(terms: Terms, axis: int) -> bool:
    """Whether the positions of an axis are picked one by one, as those of a stack."""
    return terms.size(axis) == 1 or terms.reason(axis) == TOLD_APART


def _cut(terms: Terms, axis: int, sizes: Sequence[int]) -> Axes:
    parts = [terms.leaf(size, origin=[axis]) for size in sizes]
    terms.unify(axis, terms.concat(parts))
    return parts
