"""Contractions: primitives that multiply two operands and sum over axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jmudsc.derivation.rules import genericity
from jmudsc.derivation.rules.common import (
    BY_POSITION,
    drop,
    pin_all,
    regroup,
    shape_of,
    tie,
    unknown,
)
from jmudsc.derivation.rules.primitive import (
    AxisTerms,
    Cost,
    Lookup,
    Primitive,
)
from jmudsc.derivation.terms.axis_terms import Term, Terms
from jmudsc.derivation.terms.genericity import Genericity
from jmudsc.derivation.terms.values import carried, Picked, Value

Summed = tuple[tuple[int, ...], tuple[int, ...]]
_SPATIAL = "is a spatial axis of a convolution"


def dot_general(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Tie contracted and batch axes in pairs; the rest is carried over."""
    (lhs, rhs), ((lc, rc), (lb, rb)) = ins, _dot_axes(eqn)
    for i, j in zip(lc, rc, strict=True):
        terms.unify(lhs[i], rhs[j])
    batch = [
        tie(terms, terms.size(lhs[i]), [lhs[i], rhs[j]], of_one=True)
        for i, j in zip(lb, rb, strict=True)
    ]
    return [batch + drop(lhs, (*lc, *lb)) + drop(rhs, (*rc, *rb))]


def ragged_dot_general(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Runs of rows meet one kernel each, in order: the kernels are fixed."""
    if not _is_plain_ragged(eqn):
        return unknown(terms, eqn, ins)
    (rows, lhs_in), (kernels, rhs_in, out), sizes = ins[:3]
    terms.unify(lhs_in, rhs_in)
    pin_all(terms, (rows, kernels, *sizes), BY_POSITION.format("ragged_dot_general"))
    return [[rows, out]]


def conv_general_dilated(
    terms: Terms, eqn: Any, ins: list[AxisTerms]
) -> list[AxisTerms]:
    """Tie channels in, per feature group; spatial axes are fixed."""
    (lhs, rhs), numbers = ins, eqn.params["dimension_numbers"]
    if eqn.params["batch_group_count"] != 1:
        return unknown(terms, eqn, ins)
    groups = terms.leaf(eqn.params["feature_group_count"])
    lhs_in, rhs_in = lhs[numbers.lhs_spec[1]], rhs[numbers.rhs_spec[1]]
    rhs_out = rhs[numbers.rhs_spec[0]]
    per_group = terms.leaf(terms.size(rhs_out) // terms.size(groups))
    terms.unify(lhs_in, terms.product((groups, rhs_in)))
    terms.unify(rhs_out, terms.product((groups, per_group)))
    spatial = [lhs[i] for i in numbers.lhs_spec[2:]] + [
        rhs[i] for i in numbers.rhs_spec[2:]
    ]
    pin_all(terms, spatial, _SPATIAL)
    out = [terms.fixed(n, _SPATIAL) for n in shape_of(eqn.outvars[0])]
    out[numbers.out_spec[0]] = lhs[numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = rhs_out
    return [out]


def _dot_axes(eqn: Any) -> Any:
    """Return the axes that a product sums over and those it maps over, per operand."""
    return eqn.params["dimension_numbers"]


def _ragged_axes(eqn: Any) -> Any:
    return eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers


def _is_plain_ragged(eqn: Any) -> bool:
    """Whether runs of the rows of a matrix meet a matrix each."""
    return _ragged_axes(eqn) == (((1,), (1,)), ((), ()))


def _summed_by_dot(eqn: Any) -> Summed:
    left, right = _dot_axes(eqn)[0]
    return tuple(map(int, left)), tuple(map(int, right))


def _summed_by_ragged(eqn: Any) -> Summed | None:
    return ((1,), (1,)) if _is_plain_ragged(eqn) else None


def _summed_by_conv(eqn: Any) -> Summed:
    """The input features; the window is summed over as well, but is fixed."""
    numbers = eqn.params["dimension_numbers"]
    return (numbers.lhs_spec[1],), (numbers.rhs_spec[1],)


def _after_dot(eqn: Any, number: int) -> Mapping[int, int]:
    return _in_product(eqn, number, _dot_axes(eqn), ())


def _after_ragged(eqn: Any, number: int) -> Mapping[int, int]:
    if number == 2 or not _is_plain_ragged(eqn):
        return {}
    return _in_product(eqn, number, _ragged_axes(eqn), (0,))


def _in_product(
    eqn: Any, number: int, axes: Any, group: tuple[int, ...]
) -> Mapping[int, int]:
    """Say where axes come out: those mapped over, then the rest of each operand."""
    contracted, batch = axes
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


def _after_conv(eqn: Any, number: int) -> Mapping[int, int]:
    numbers = eqn.params["dimension_numbers"]
    place = (numbers.lhs_spec[0], numbers.rhs_spec[0])[number]
    return {place: numbers.out_spec[number]}


def _runs(eqn: Any) -> tuple[Lookup, ...]:
    """Every row meets the kernel of its run."""
    if not _is_plain_ragged(eqn):
        return ()
    return (Lookup(source=1, axis=0, index=2, along=(0,), is_run=True),)


def _met_in_dot(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], picked: Picked
) -> list[Value]:
    """The operands are multiplied unit by unit before the sum."""
    maps = [dict(_after_dot(eqn, number)) for number in range(2)]
    return _product(ins, outs[0].axes, maps, _summed_by_dot(eqn), picked)


def _met_in_ragged(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], picked: Picked
) -> list[Value] | None:
    summed = _summed_by_ragged(eqn)
    if summed is None:
        return None
    maps = [dict(_after_ragged(eqn, number)) for number in range(2)]
    return _product(ins, outs[0].axes, maps, summed, picked)


def _product(
    ins: Sequence[Value],
    out: Sequence[Term],
    maps: list[dict[int, int]],
    summed: Summed,
    picked: Picked,
) -> list[Value]:
    axes = _beside_summed(ins, out, maps, summed)
    return [Value(axes, picks=carried(ins[:2], maps, len(axes), picked))]


def _beside_summed(
    ins: Sequence[Value],
    out: Sequence[Term],
    maps: list[dict[int, int]],
    summed: Summed,
) -> AxisTerms:
    """Put the axes summed over beside those of the output, in `maps` too."""
    axes = list(out)
    for left, right in zip(*summed, strict=True):
        maps[0][left] = maps[1][right] = len(axes)
        axes.append(ins[1].axes[right])
    return axes


def _met_in_conv(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], picked: Picked
) -> list[Value]:
    """Windows and groups meet as well."""
    maps = [dict(_after_conv(eqn, number)) for number in range(2)]
    axes = _beside_summed(ins, outs[0].axes, maps, _summed_by_conv(eqn))
    for value, where in zip(ins, maps, strict=True):
        for axis in set(range(len(value.axes))) - where.keys():
            where[axis] = len(axes)
            axes.append(value.axes[axis])
    features = eqn.params["dimension_numbers"].out_spec[1]
    groups = eqn.params["feature_group_count"]
    sizes = [groups, terms.size(axes[features]) // groups]
    group, axes[features] = regroup(terms, [axes[features]], sizes)
    axes.append(group)
    return [Value(axes, picks=carried(ins[:2], maps, len(axes), picked))]


def _flow_of_dot(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    maps = [_after_dot(eqn, number) for number in range(2)]
    return genericity.contracted(eqn, ins, _summed_by_dot(eqn), maps)


def _flow_of_conv(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Along features as in a product; at other axes of the kernel it sums as well."""
    numbers = eqn.params["dimension_numbers"]
    maps = [{}, {numbers.rhs_spec[0]: numbers.out_spec[1]}]
    is_grouped = eqn.params["feature_group_count"] > 1
    if eqn.params["batch_group_count"] != 1:
        return genericity.unknown(eqn, ins)
    return genericity.contracted(eqn, ins, _summed_by_conv(eqn), maps, is_grouped)


def _cost_of_dot(eqn: Any) -> Cost:
    shape = shape_of(eqn.invars[0])
    (left, _), _ = _dot_axes(eqn)
    return _cost(eqn, math.prod(shape[axis] for axis in left), _last_of_output(eqn))


def _cost_of_ragged(eqn: Any) -> Cost:
    return _cost(eqn, shape_of(eqn.invars[0])[-1], _last_of_output(eqn))


def _cost_of_conv(eqn: Any) -> Cost:
    kernel = shape_of(eqn.invars[1])
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return _cost(eqn, math.prod(kernel) // features, features)


def _last_of_output(eqn: Any) -> int:
    return (shape_of(eqn.outvars[0]) or (1,))[-1] or 1


def _cost(eqn: Any, summed: int, features: int) -> Cost:
    """Count what sums so many products for each entry, with so many units out."""
    size = math.prod(shape_of(eqn.outvars[0]))
    rows = size // features
    return Cost(2 * size * summed, 2 * rows * summed * (summed + features))


PRIMITIVES = (
    Primitive(
        "dot_general",
        rule=dot_general,
        axis_map=_after_dot,
        summed=_summed_by_dot,
        meets=_met_in_dot,
        genericity=_flow_of_dot,
        cost=_cost_of_dot,
    ),
    Primitive(
        "ragged_dot_general",
        rule=ragged_dot_general,
        axis_map=_after_ragged,
        lookups=_runs,
        summed=_summed_by_ragged,
        meets=_met_in_ragged,
        cost=_cost_of_ragged,
    ),
    Primitive(
        "conv_general_dilated",
        rule=conv_general_dilated,
        axis_map=_after_conv,
        summed=_summed_by_conv,
        meets=_met_in_conv,
        genericity=_flow_of_conv,
        cost=_cost_of_conv,
    ),
)
