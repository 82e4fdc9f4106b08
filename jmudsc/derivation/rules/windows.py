"""Windows: primitives that slide a window over axes, as pooling does."""

from typing import Any

from jmudsc.derivation.rules.common import by_position, negligible, shape_of, tie
from jmudsc.derivation.rules.primitive import AxisTerms, Primitive
from jmudsc.derivation.terms.axis_terms import Terms

_STEPS = "window_dimensions", "window_strides", "base_dilation", "padding"


def reduce_window(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Carry axes along which each window is its own position; fix the others."""
    out = []
    for i, size in enumerate(shape_of(eqn.outvars[0])):
        axes = [operand[i] for operand in ins if operand]
        if [eqn.params[name][i] for name in _STEPS] == [1, 1, 1, (0, 0)]:
            out.append(tie(terms, size, axes))
        else:
            fixed = [by_position(terms, axis, size, eqn) for axis in axes]
            out.append(fixed[0])
    return [out] * len(eqn.outvars)


def _windowed(name: str) -> Primitive:
    return Primitive(name, rule=reduce_window, cost=negligible)


PRIMITIVES = (
    _windowed("reduce_window"),
    _windowed("reduce_window_max"),
    _windowed("reduce_window_min"),
    _windowed("reduce_window_sum"),
)
