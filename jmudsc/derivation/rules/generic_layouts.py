"""Generic layouts: what becomes of entries that are never equal where axes move.

The flows of primitives that lay entries out anew, take some or put them side by side;
those that compute new ones are in `genericity`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jmudsc.derivation.rules.common import order_of, shape_of
from jmudsc.derivation.rules.genericity import unknown
from jmudsc.derivation.rules.primitive import Flow
from jmudsc.derivation.terms.genericity import (
    Along,
    FLAT,
    Genericity,
    leaves_of,
    NOTHING,
    Sign,
    weaker,
)


def laid_out(where: Callable[[Any, int], Mapping[int, int]]) -> Flow:
    """Return the flow of what carries the axes of its first operand along.

    Args:
        where: which axis of it is which axis of the outputs.
    """

    def flow(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
        leaves = leaves_of(ins)
        outs = []
        for var in eqn.outvars:
            out = ins[0].moved(where(eqn, 0), len(shape_of(var)))
            outs.append(replace(out, leaves=leaves))
        return outs

    return flow


def looked_up(
    where: Callable[[Any, int], Mapping[int, int]],
    may_be_zero: Callable[[Any], bool],
) -> Flow:
    """Return the flow of what carries axes along, and repeats some positions.

    Args:
        where: which axis of the operand is which axis of the output.
        may_be_zero: whether zeros come out where an index is outside.
    """

    def flow(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
        operand, indices = ins[0], leaves_of(ins[1:])
        out = operand.moved(where(eqn, 0), len(shape_of(eqn.outvars[0])))
        axes = tuple(replace(a, units=a.units & ~indices) for a in out.axes)
        leaves = out.leaves | indices
        out = replace(out, axes=axes, leaves=leaves, free=0)
        if may_be_zero(eqn):
            out = replace(out.without_apart(), sign=Sign.UNKNOWN)
        return [out]

    return flow


def broadcast(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Along new and widened axes entries are equal."""
    shape, kept = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    before = shape_of(eqn.invars[0])
    same = {
        axis: int(new)
        for axis, new in enumerate(kept)
        if before[axis] == shape[int(new)]
    }
    out = ins[0].moved(same, len(shape))
    axes = tuple(
        a if number in same.values() else FLAT for number, a in enumerate(out.axes)
    )
    return [replace(out, axes=axes)]


def reshaped(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """The parts of an axis are as it was; a product of axes only if all is free."""
    order, after = order_of(eqn), shape_of(eqn.outvars[0])
    value = ins[0].moved({axis: new for new, axis in enumerate(order)}, len(order))
    before = [shape_of(eqn.invars[0])[axis] for axis in order]
    if 0 in before:
        return unknown(eqn, ins)
    axes = [FLAT] * len(after)
    for old, new in _groups(before, after):
        known = [value.axes[axis] for axis in old]
        is_flat = all(a.is_flat for a in known)
        is_joint = bool(value.free) and all(a.is_joint for a in known)
        part = Along(is_flat=is_flat)
        if is_joint or len(old) == 1:
            units = value.free if is_joint else known[0].units
            is_apart = all(a.is_apart for a in known)
            part = Along(units, is_apart, is_flat, is_joint)
        for axis in new:
            axes[axis] = part
    return [replace(value, axes=tuple(axes), is_in_place=False)]


def joined(along: str) -> Flow:
    """Return the flow of what puts values side by side.

    Args:
        along: the parameter that holds the axis.
    """

    def flow(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
        number, rank = int(eqn.params[along]), len(shape_of(eqn.outvars[0]))
        out = ins[0]
        for value in ins[1:]:
            out = weaker(out, value)
        axes = list(out.axes)
        if rank > len(axes):
            axes.insert(number, NOTHING)
        axes[number] = NOTHING
        return [replace(out, axes=tuple(axes), free=0)]

    return flow


def _groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Return the smallest groups of axes of equal size, those of size 1 left out."""
    old = [axis for axis, size in enumerate(before) if size != 1]
    new = [axis for axis, size in enumerate(after) if size != 1]
    groups = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (have := math.prod(before[i] for i in left)) != (
            want := math.prod(after[i] for i in right)
        ):
            (left if have < want else right).append(
                (old if have < want else new).pop(0)
            )
        groups.append((left, right))
    return groups
