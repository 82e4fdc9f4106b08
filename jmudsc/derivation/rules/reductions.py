"""Reductions: primitives that sum over axes, or run along one."""

from collections.abc import Mapping
from typing import Any

from jmudsc.derivation.rules import genericity
from jmudsc.derivation.rules.common import (
    all_but,
    drop,
    negligible,
    shape_of,
    those_left,
)
from jmudsc.derivation.rules.primitive import AxisTerms, Flow, Primitive
from jmudsc.derivation.terms.axis_terms import Terms


def reduce(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """A sum, maximum, ... over an axis does not depend on its order: drop it."""
    return [drop(ins[0], _axes(eqn))]


def cumulative(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """The axis run along is fixed."""
    along, out = eqn.params["axis"], list(ins[0])
    reason = f"is run along by {eqn.primitive.name}"
    terms.pin(out[along], reason)
    out[along] = terms.fixed(terms.size(out[along]), reason)
    return [out]


def _axes(eqn: Any) -> tuple[int, ...]:
    return tuple(map(int, eqn.params["axes"]))


def _after_reduction(eqn: Any, number: int) -> Mapping[int, int]:
    return those_left(shape_of(eqn.invars[number]), _axes(eqn))


def _beside(eqn: Any, number: int) -> Mapping[int, int]:
    return all_but(shape_of(eqn.invars[number]), eqn.params["axis"])


def _reduction(name: str, flow: Flow | None = None) -> Primitive:
    return Primitive(
        name,
        rule=reduce,
        axis_map=_after_reduction,
        genericity=flow,
        cost=negligible,
    )


def _running(name: str) -> Primitive:
    return Primitive(name, rule=cumulative, axis_map=_beside, cost=negligible)


PRIMITIVES = (
    _reduction("reduce_and"),
    _reduction("reduce_max", genericity.largest),
    _reduction("reduce_min", genericity.largest),
    _reduction("reduce_or"),
    _reduction("reduce_prod"),
    _reduction("reduce_sum", genericity.summed),
    _reduction("reduce_xor"),
    _running("cumlogsumexp"),
    _running("cummax"),
    _running("cummin"),
    _running("cumprod"),
    _running("cumsum"),
)
