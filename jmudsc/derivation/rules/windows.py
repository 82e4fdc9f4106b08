"""Windows: primitives that slide a window over axes, as pooling does."""

from typing import Any

from jmudsc.derivation.rules.common import by_position, negligible, shape_of, tie
from jmudsc.derivation.rules.primitive import AxisTerms, Primitive
from jmudsc.derivation.terms.axis_terms import Terms

# How a window is slid along an axis, if it is every position by itself.
_STEPS = {
    "window_dimensions": 1,
    "window_strides": 1,
    "base_dilation": 1,
    "padding": (0, 0),
}


def reduce_window(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Carry axes along which each window is its own position; fix the others."""
    steps = [
        (eqn.params[name], plain)
        for name, plain in _STEPS.items()
        if name in eqn.params
    ]
    out = []
    for i, size in enumerate(shape_of(eqn.outvars[0])):
        axes = [operand[i] for operand in ins if operand]
        if all(given[i] == plain for given, plain in steps):
            out.append(tie(terms, size, axes))
        else:
            fixed = [by_position(terms, axis, size, eqn) for axis in axes]
            out.append(fixed[0])
    return [out] * len(eqn.outvars)


def _windowed(name: str) -> Primitive:
    return Primitive(name, rule=reduce_window, cost=negligible)


# The two of the derivatives of pooling: a value for each window, and one to choose by.
PRIMITIVES = (
    _windowed("select_and_gather_add"),
    _windowed("select_and_scatter_add"),
    Primitive("reduce_window", rule=reduce_window),  # reduces by any program
    _windowed("reduce_window_max"),
    _windowed("reduce_window_min"),
    _windowed("reduce_window_sum"),
)
