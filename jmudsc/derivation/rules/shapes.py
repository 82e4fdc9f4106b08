"""Shapes: primitives that lay out the same entries anew, or hand them on."""

import math
from collections.abc import Mapping
from typing import Any

from jmudsc.derivation.rules import generic_layouts, genericity
from jmudsc.derivation.rules.common import (
    BY_POSITION,
    by_position,
    drop,
    negligible,
    order_of,
    pin_all,
    regroup,
    shape_of,
    those_left,
    tie,
    unknown,
)
from jmudsc.derivation.rules.positions import hand_on
from jmudsc.derivation.rules.primitive import AxisTerms, Moves, Primitive
from jmudsc.derivation.terms.axis_terms import Terms


def identity(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Every operand comes out as it went in."""
    return ins


def broadcast_in_dim(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """New and widened axes are constant along themselves, so free."""
    shape, kept = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    source = dict(zip(kept, ins[0], strict=True))
    return [
        [tie(terms, n, [source[i]] if i in source else []) for i, n in enumerate(shape)]
    ]


def reshape(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Within the smallest groups of axes of equal size, both sides are one product."""
    axes = [ins[0][number] for number in order_of(eqn)]
    before = [axis for axis in axes if terms.size(axis) != 1]
    sizes = shape_of(eqn.outvars[0])
    after = [size for size in sizes if size != 1]
    if 0 in sizes:
        return unknown(terms, eqn, ins)
    made: AxisTerms = []
    while after:
        group, new = [before.pop(0)], [after.pop(0)]
        have, want = terms.size(group[0]), new[0]
        while have != want:
            if have < want:
                group.append(before.pop(0))
                have *= terms.size(group[-1])
            else:
                new.append(after.pop(0))
                want *= new[-1]
        made += regroup(terms, group, new)
    return [[terms.leaf(1) if size == 1 else made.pop(0) for size in sizes]]


def transpose(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Carry each axis to its new place."""
    return [[ins[0][i] for i in eqn.params["permutation"]]]


def squeeze(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Drop axes of size 1."""
    return [drop(ins[0], _dropped(eqn))]


def rev(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """The axes reversed are fixed."""
    out = list(ins[0])
    for number in eqn.params["dimensions"]:
        out[number] = by_position(terms, out[number], terms.size(out[number]), eqn)
    return [out]


def bitcast_convert_type(
    terms: Terms, eqn: Any, ins: list[AxisTerms]
) -> list[AxisTerms]:
    """Parts of an entry, if it is cut into some, are on a last axis, in order."""
    (axes,), shape = ins, shape_of(eqn.outvars[0])
    reason = BY_POSITION.format(eqn.primitive.name)
    pin_all(terms, axes[len(shape) :], reason)
    return [axes[: len(shape)] + [terms.fixed(n, reason) for n in shape[len(axes) :]]]


def _dropped(eqn: Any) -> tuple[int, ...]:
    return tuple(map(int, eqn.params["dimensions"]))


def _after_broadcast(eqn: Any, number: int) -> Mapping[int, int]:
    return dict(enumerate(map(int, eqn.params["broadcast_dimensions"])))


def _after_bitcast(eqn: Any, number: int) -> Mapping[int, int]:
    ranks = (len(shape_of(var)) for var in (eqn.invars[number], eqn.outvars[0]))
    return {axis: axis for axis in range(min(ranks))}


def _after_transpose(eqn: Any, number: int) -> Mapping[int, int]:
    order = map(int, eqn.params["permutation"])
    return {axis: new for new, axis in enumerate(order)}


def _after_squeeze(eqn: Any, number: int) -> Mapping[int, int]:
    return those_left(shape_of(eqn.invars[number]), _dropped(eqn))


def _after_reshape(eqn: Any, number: int) -> Mapping[int, int]:
    """Pair the axes that a reshape leaves as they are."""
    order, after = order_of(eqn), shape_of(eqn.outvars[0])
    before = [shape_of(eqn.invars[number])[axis] for axis in order]
    ends = {
        (math.prod(after[:new]), size): new
        for new, size in enumerate(after)
        if size > 1
    }
    found = {
        order[place]: ends.get((math.prod(before[:place]), size))
        for place, size in enumerate(before)
        if size > 1
    }
    return {axis: new for axis, new in found.items() if new is not None}


PRIMITIVES = (
    Primitive(
        "bitcast_convert_type",
        rule=bitcast_convert_type,
        axis_map=_after_bitcast,
        cost=negligible,
    ),
    Primitive(
        "broadcast_in_dim",
        rule=broadcast_in_dim,
        positions=hand_on,
        axis_map=_after_broadcast,
        genericity=generic_layouts.broadcast,
        entries=Moves.LAID_OUT,
        cost=negligible,
    ),
    Primitive(
        "reshape",
        rule=reshape,
        positions=hand_on,
        axis_map=_after_reshape,
        genericity=generic_layouts.reshaped,
        entries=Moves.LAID_OUT,
        cost=negligible,
    ),
    Primitive(
        "squeeze",
        rule=squeeze,
        positions=hand_on,
        axis_map=_after_squeeze,
        genericity=generic_layouts.laid_out(_after_squeeze),
        entries=Moves.LAID_OUT,
        cost=negligible,
    ),
    Primitive(
        "transpose",
        rule=transpose,
        positions=hand_on,
        axis_map=_after_transpose,
        genericity=generic_layouts.laid_out(_after_transpose),
        entries=Moves.LAID_OUT,
        cost=negligible,
    ),
    Primitive(
        "rev",
        rule=rev,
        genericity=genericity.reordered,
        entries=Moves.TAKEN,
        cost=negligible,
    ),
    Primitive("device_put", rule=identity, genericity=genericity.kept, cost=negligible),
    Primitive("name", rule=identity, genericity=genericity.kept, cost=negligible),
    Primitive(
        "optimization_barrier",
        rule=identity,
        positions=hand_on,
        genericity=genericity.kept,
        cost=negligible,
    ),
    Primitive(
        "sharding_constraint",
        rule=identity,
        genericity=genericity.kept,
        entries=Moves.KEPT,
        cost=negligible,
    ),
)
