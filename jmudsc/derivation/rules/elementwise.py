"""Elementwise: primitives that treat every entry alike."""

from typing import Any

from jmudsc.derivation.rules.common import negligible, same_axes, shape_of, tie
from jmudsc.derivation.rules.positions import (
    cast,
    compared,
    hand_on,
    less,
    met_by_comparison,
    selected,
    shifted,
)
from jmudsc.derivation.rules.primitive import (
    Arithmetic,
    AxisTerms,
    Moves,
    Primitive,
)
from jmudsc.derivation.terms.axis_terms import Terms


def aligned(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Tie aligned axes; an operand of size 1 or rank 0 is broadcast."""
    return _aligned(terms, eqn, ins, is_product=False)


def multiplied(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Tie aligned axes; one unit of the product is made of one unit of each factor."""
    return _aligned(terms, eqn, ins, is_product=True)


def _aligned(
    terms: Terms, eqn: Any, ins: list[AxisTerms], is_product: bool
) -> list[AxisTerms]:
    shape = shape_of(eqn.outvars[0])
    out = [
        tie(terms, size, [axes[i] for axes in ins if axes], of_one=is_product)
        for i, size in enumerate(shape)
    ]
    return [out] * len(eqn.outvars)


def elementwise(name: str, **more: Any) -> Primitive:
    """Build the record of a primitive that treats every entry alike."""
    facets: dict[str, Any] = {
        "rule": aligned,
        "axis_map": same_axes,
        "cost": negligible,
    }
    return Primitive(name, **{**facets, **more})


_PLAIN = """
abs acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clz
complex conj cos cosh digamma erf erf_inv erfc exp exp2 expm1 floor ge gt igamma
igammac imag integer_pow is_finite le lgamma log log1p log2 logistic min neg nextafter
not one_minus_square or polygamma population_count pow real reduce_precision
regularized_incomplete_beta rem round shift_left shift_right_arithmetic
shift_right_logical sign sin sinh square tan tanh xor zeta
""".split()

PRIMITIVES = (
    *map(elementwise, _PLAIN),
    elementwise("add_any", arithmetic=Arithmetic.SUM),
    elementwise("add", arithmetic=Arithmetic.SUM, positions=shifted),
    elementwise("clamp", arithmetic=Arithmetic.LOWER_BOUND),
    elementwise("convert_element_type", entries=Moves.KEPT, positions=cast),
    elementwise("copy", entries=Moves.KEPT, positions=hand_on),
    elementwise("div", arithmetic=Arithmetic.QUOTIENT, rule=multiplied),
    elementwise("eq", positions=compared, meets=met_by_comparison),
    elementwise("lt", positions=less),
    elementwise("max", arithmetic=Arithmetic.LOWER_BOUND),
    elementwise("mul", arithmetic=Arithmetic.PRODUCT, rule=multiplied),
    elementwise("ne", positions=compared, meets=met_by_comparison),
    elementwise("rsqrt", arithmetic=Arithmetic.ROOT),
    elementwise("select_n", positions=selected),
    elementwise("sqrt", arithmetic=Arithmetic.ROOT),
    elementwise("stop_gradient", entries=Moves.KEPT, positions=hand_on),
    elementwise("sub", arithmetic=Arithmetic.DIFFERENCE),
)
