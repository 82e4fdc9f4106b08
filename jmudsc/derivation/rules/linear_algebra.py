"""Linear algebra: decompositions, solvers and transforms along whole axes."""

from typing import Any

from jmudsc.derivation.rules.common import by_position, negligible, shape_of
from jmudsc.derivation.rules.primitive import AxisTerms, Primitive
from jmudsc.derivation.terms.axis_terms import Terms


def fft(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """The axes transformed are fixed."""
    shape = shape_of(eqn.outvars[0])
    kept = len(shape) - len(eqn.params["fft_lengths"])
    pairs = zip(ins[0][kept:], shape[kept:], strict=True)
    return [ins[0][:kept] + [by_position(terms, axis, n, eqn) for axis, n in pairs]]


PRIMITIVES = (Primitive("fft", rule=fft, cost=negligible),)
