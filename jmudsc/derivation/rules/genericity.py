"""Genericity rules: what becomes of entries that are never equal (`terms.genericity`).

A flow is `(eqn, what is known of each operand) -> what is known of each output`. A
primitive without one makes values of which nothing is known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jmudsc.derivation.rules.common import shape_of
from jmudsc.derivation.rules.primitive import Flow
from jmudsc.derivation.terms.genericity import (
    Along,
    bounded,
    FLAT,
    Genericity,
    leaves_of,
    NOTHING,
    nothing,
    Sign,
    size_of,
    with_free,
)

# An exponential of what is larger becomes zero or infinite for several units at once:
# e^-103 is zero in float32, and units differ by 10 or more now and then.
_STEEP = 8.0

# A summand so much larger rounds the other away, in part: float32 has 23 bits.
_SWALLOWS = 2.0**10


def unknown(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Say only which leaves the outputs depend on."""
    return [
        nothing(len(shape_of(out)), leaves_of(ins), size_of(ins)) for out in eqn.outvars
    ]


def entrywise(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Entries are computed from aligned ones and may become equal (a relu)."""
    operands = _aligned(eqn, ins)
    axes = tuple(
        Along(is_flat=all(a.is_flat for a in same))
        for same in zip(*(value.axes for value in operands), strict=True)
    )
    return [Genericity(axes, leaves_of(ins), size=size_of(ins)) for _ in eqn.outvars]


def at_least(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """The larger of two is positive if one is."""
    (out,) = entrywise(eqn, ins)
    is_positive = any(value.sign == Sign.POSITIVE for value in ins)
    return [replace(out, sign=Sign.POSITIVE if is_positive else Sign.UNKNOWN)]


def kept(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Entries stay as they are, and where they are."""
    return list(ins)


def reordered(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Entries stay as they are, in another order along some axes."""
    return [replace(ins[0], is_in_place=False)]


def narrowed(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Entries are rounded."""
    return [ins[0].without_apart()]


def increasing(sign: Sign = Sign.UNKNOWN) -> Flow:
    """Return the flow of a function that never takes one number twice.

    Args:
        sign: of all its values.
    """

    def flow(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
        known = Sign.NONZERO if ins[0].is_atomless else Sign.UNKNOWN
        return [replace(ins[0], sign=max(sign, known))]

    return flow


def exponential(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """No two numbers have one, but of large ones it is zero or infinite."""
    flow = entrywise if ins[0].size >= _STEEP else increasing(Sign.POSITIVE)
    return [replace(out, size=_STEEP) for out in flow(eqn, ins)]


def logarithm(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """No two numbers have one, and it is never large."""
    (out,) = increasing()(eqn, ins)
    return [replace(out, size=1.0)]


def power(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Some two numbers have one; high powers are zero or infinite."""
    exponent = eqn.params["y"]
    flow = entrywise if abs(exponent) >= _STEEP else smooth(Sign.NONZERO)
    size = bounded(ins[0].size ** min(max(exponent, -8), 8))
    return [replace(out, size=size) for out in flow(eqn, ins)]


def squared(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Some two numbers have one, and what is large gets larger."""
    (out,) = smooth(Sign.POSITIVE)(eqn, ins)
    return [replace(out, size=bounded(ins[0].size ** 2))]


def negated(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Only the sign changes."""
    return [replace(ins[0], sign=min(ins[0].sign, Sign.NONZERO))]


def smooth(sign: Sign = Sign.UNKNOWN, is_saturating: bool = False) -> Flow:
    """Return the flow of an analytic function that may take a number twice.

    Args:
        sign: of its value at any number but zero.
        is_saturating: whether it comes so close to a bound that it is rounded to it.
    """

    def flow(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
        (value,) = ins
        axes = tuple(
            replace(a, is_apart=a.is_apart and bool(a.units) and not is_saturating)
            for a in value.axes
        )
        known = sign if value.sign or value.is_atomless else Sign.UNKNOWN
        size = 1.0 if is_saturating else value.size
        return [replace(value, axes=axes, sign=known, size=size)]

    return flow


def positive(flow: Flow) -> Flow:
    """Say besides of a flow that whatever comes out is positive."""

    def always(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
        return [replace(out, sign=Sign.POSITIVE) for out in flow(eqn, ins)]

    return always


def added(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """A sum is generic if one summand is, by a leaf that the other does not have.

    Two functions of the same unit are taken not to cancel, unless they are the same
    value. Of what a far larger summand is added to, entries become equal by rounding.
    """
    if eqn.invars[0] is eqn.invars[1]:
        return increasing()(eqn, ins[:1]) if _is_sum(eqn) else _constant(eqn, ins)
    a, b = _aligned(eqn, ins)
    a, b = _unswallowed(a, b), _unswallowed(b, a)
    axes = tuple(_sum_along(a, b, *pair) for pair in zip(a.axes, b.axes, strict=True))
    out = Genericity(axes, a.leaves | b.leaves, size=max(a.size, b.size))
    out = with_free(out, (a.free & ~b.leaves, a), (b.free & ~a.leaves, b))
    sign = Sign.NONZERO if out.is_atomless else Sign.UNKNOWN
    if _is_sum(eqn) and a.sign == b.sign == Sign.POSITIVE:
        sign = Sign.POSITIVE
    return [replace(out, sign=sign)]


def multiplied(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """A product is generic if one factor is, and the other never zero.

    What is divided by is taken not to be zero.
    """
    is_quotient = eqn.primitive.name == "div"
    if eqn.invars[0] is eqn.invars[1]:
        return _constant(eqn, ins) if is_quotient else squared(eqn, ins[:1])
    a, b = _aligned(eqn, ins)
    if is_quotient:
        b = replace(b, sign=max(b.sign, Sign.NONZERO))
    is_scaled = _is_flat_beside(a, b) or _is_flat_beside(b, a)
    axes = tuple(
        _product_along(a, b, *pair, is_scaled)
        for pair in zip(a.axes, b.axes, strict=True)
    )
    size = bounded(a.size / b.size if is_quotient else a.size * b.size)
    out = Genericity(axes, a.leaves | b.leaves, sign=_sign_of_product(a, b), size=size)
    free = a.free & ~b.leaves if b.sign else 0, b.free & ~a.leaves if a.sign else 0
    return [with_free(out, (free[0], a), (free[1], b))]


def summed(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Sums are never equal where all that they sum is independent."""
    value = _dropped(eqn, ins[0])
    is_joint = all(ins[0].axes[int(axis)].is_joint for axis in eqn.params["axes"])
    if not value.free or not is_joint:
        value = replace(value.without_apart(), free=0)
    axes = tuple(replace(a, is_apart=a.is_apart and a.is_joint) for a in value.axes)
    value = replace(value, axes=axes)
    is_signed = value.free or value.sign == Sign.POSITIVE
    return [value if is_signed else replace(value, sign=Sign.UNKNOWN)]


def largest(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """The largest of independent entries are never equal."""
    value = _dropped(eqn, ins[0])
    axes = tuple(replace(a, is_apart=a.is_apart and bool(a.units)) for a in value.axes)
    return [replace(value, axes=axes)]


def contracted(
    eqn: Any,
    ins: Sequence[Genericity],
    summed: tuple[Sequence[int], Sequence[int]],
    maps: Sequence[Mapping[int, int]],
    is_grouped: bool = False,
) -> list[Genericity]:
    """A product with a leaf of its own is generic where the rest is not all zero.

    Args:
        eqn: a contraction.
        ins: its operands.
        summed: per operand the axes summed over.
        maps: per operand where its other axes come out.
        is_grouped: whether outputs differ in the part of the operand that they sum.

    Returns:
        What is known of the output.
    """
    rank = len(shape_of(eqn.outvars[0]))
    axes = [NOTHING] * rank
    both = set(maps[0].values()) & set(maps[1].values())
    for number in range(2):
        kernel, x = ins[number], ins[1 - number]
        over = [x.axes[i] for i in summed[1 - number]]
        is_free = all(kernel.axes[i].is_joint for i in summed[number])
        free = kernel.free if is_free else 0
        other = {new: axis for axis, new in maps[1 - number].items()}
        for axis, new in maps[number].items():
            beside = x.axes[other[new]] if new in both else FLAT
            known = _contracted_along(kernel.axes[axis], free, x, over, is_grouped)
            if not known.is_apart and (is_grouped or not beside.is_flat):
                known = NOTHING
            if new not in both and not is_grouped:
                told = _carried(kernel, kernel.axes[axis], x, summed[1 - number])
                known = _either(known, told)
            is_flat = beside.is_flat and kernel.axes[axis].is_flat and not is_grouped
            axes[new] = _either(axes[new], replace(known, is_flat=is_flat))
    size = bounded(ins[0].size * ins[1].size)
    out = Genericity(tuple(axes), leaves_of(ins), size=size)
    sign = Sign.NONZERO if out.is_atomless else Sign.UNKNOWN
    if all(value.sign == Sign.POSITIVE for value in ins):
        sign = Sign.POSITIVE
    return [replace(out, sign=sign)]


def _aligned(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Numbers, and axes of size 1, are the same along all axes of the output."""
    shape = shape_of(eqn.outvars[0])
    return [
        _widened(value, shape_of(var), shape)
        for value, var in zip(ins, eqn.invars, strict=True)
    ]


def _widened(
    value: Genericity, before: Sequence[int], after: Sequence[int]
) -> Genericity:
    if before == after:
        return value
    axes = value.axes if len(before) == len(after) else (NOTHING,) * len(after)
    sizes = before if len(before) == len(after) else (1,) * len(after)
    wide = tuple(
        axis if old == new else FLAT
        for axis, old, new in zip(axes, sizes, after, strict=True)
    )
    return replace(value, axes=wide, is_in_place=False)


def _is_sum(eqn: Any) -> bool:
    return eqn.primitive.name != "sub"


def _constant(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    return [Genericity((FLAT,) * len(shape_of(eqn.outvars[0])), leaves_of(ins))]


def _either(x: Along, y: Along) -> Along:
    return Along(x.units | y.units, x.is_apart or y.is_apart, x.is_flat or y.is_flat)


def _unswallowed(value: Genericity, other: Genericity) -> Genericity:
    """Return what is known of a summand beside one that may be far larger."""
    if other.size < _SWALLOWS * value.size:
        return value
    axes = tuple(Along(is_flat=axis.is_flat) for axis in value.axes)
    return replace(value, axes=axes, free=0, sign=Sign.UNKNOWN)


def _sum_along(a: Genericity, b: Genericity, x: Along, y: Along) -> Along:
    new_x, new_y, same = x.units & ~b.leaves, y.units & ~a.leaves, x.units & y.units
    is_apart = (x.is_apart and bool(y.is_flat or new_x or new_y or same)) or (
        y.is_apart and bool(x.is_flat or new_x or new_y or same)
    )
    units = same
    units |= new_x if y.is_flat or x.is_apart else 0
    units |= new_y if x.is_flat or y.is_apart else 0
    return Along(units, is_apart, x.is_flat and y.is_flat)


def _product_along(
    a: Genericity, b: Genericity, x: Along, y: Along, is_scaled: bool
) -> Along:
    new_x, new_y = x.units & ~b.leaves, y.units & ~a.leaves
    same = x.units & y.units if is_scaled else 0
    is_apart = (
        (x.is_apart and bool(b.sign) and bool(y.is_flat or new_x))
        or (y.is_apart and bool(a.sign) and bool(x.is_flat or new_y))
        or (x.is_apart and y.is_apart and bool(new_x or new_y or same))
    )
    units = same
    units |= new_x if y.is_flat or (x.is_apart and b.sign) else 0
    units |= new_y if x.is_flat or (y.is_apart and a.sign) else 0
    return Along(units, is_apart, x.is_flat and y.is_flat)


def _is_flat_beside(a: Genericity, b: Genericity) -> bool:
    """Whether one is the same along an axis on which the other is not: a norm."""
    return any(x.is_flat and y.is_apart for x, y in zip(a.axes, b.axes, strict=True))


def _sign_of_product(a: Genericity, b: Genericity) -> Sign:
    if a.sign == b.sign == Sign.POSITIVE:
        return Sign.POSITIVE
    return Sign.NONZERO if a.sign and b.sign else Sign.UNKNOWN


def _contracted_along(
    axis: Along,
    free: int,
    x: Genericity,
    over: Sequence[Along],
    is_grouped: bool,
) -> Along:
    """What is known along an axis of a kernel after it is multiplied with a value."""
    is_data = not x.leaves and not all(a.is_flat for a in over)
    is_varied = any(a.is_apart for a in over)
    is_nonzero = bool(x.sign) or (is_varied and not is_grouped)
    is_varied |= is_data
    units = axis.units & ~x.leaves
    is_free = axis.is_joint and free & units
    is_sure = is_free or (axis.is_apart and (is_varied or not over))
    return Along(units, bool(units and is_nonzero and is_sure))


def _carried(
    value: Genericity, axis: Along, kernel: Genericity, over: Sequence[int]
) -> Along:
    """Say that rows which differ come out different."""
    is_joint = all(kernel.axes[i].is_joint for i in over)
    free = kernel.free & ~value.leaves if is_joint else 0
    return Along(is_apart=axis.is_apart and bool(free))


def _dropped(eqn: Any, value: Genericity) -> Genericity:
    gone = {int(axis) for axis in eqn.params["axes"]}
    left = [axis for axis in range(len(value.axes)) if axis not in gone]
    return value.moved({axis: new for new, axis in enumerate(left)}, len(left))
