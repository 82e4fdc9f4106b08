"""Elementwise: primitives that treat every entry alike."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from jmudsc.derivation.rules import genericity
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
from jmudsc.derivation.terms.genericity import Genericity, Sign


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
        "genericity": genericity.entrywise,
        "cost": negligible,
    }
    return Primitive(name, **{**facets, **more})


def _cast_entries(eqn: Any, ins: Sequence[Genericity]) -> list[Genericity]:
    """Floats stay as they are in a wider type; of narrow ones many are equal."""
    old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in (old, new)):
        return genericity.entrywise(eqn, ins)
    is_narrower = jnp.finfo(new).nmant < jnp.finfo(old).nmant
    return (genericity.narrowed if is_narrower else genericity.kept)(eqn, ins)


_PLAIN = """
acos acosh and asin asinh atan2 atanh bessel_i0e bessel_i1e ceil clz complex conj
digamma erf_inv expm1 floor ge gt igamma igammac imag is_finite le lgamma log1p
min nextafter not one_minus_square or polygamma population_count pow real
reduce_precision regularized_incomplete_beta rem round shift_left
shift_right_arithmetic shift_right_logical sign tan xor zeta
""".split()
_FLOWS = {
    "abs": genericity.smooth(Sign.POSITIVE),
    "atan": genericity.smooth(Sign.NONZERO, is_saturating=True),
    "cbrt": genericity.increasing(),
    "cos": genericity.smooth(),
    "cosh": genericity.positive(genericity.smooth()),
    "erf": genericity.smooth(Sign.NONZERO, is_saturating=True),
    "erfc": genericity.smooth(is_saturating=True),
    "exp": genericity.exponential,
    "exp2": genericity.exponential,
    "integer_pow": genericity.power,
    "log": genericity.logarithm,
    "log2": genericity.logarithm,
    "logistic": genericity.smooth(is_saturating=True),
    "neg": genericity.negated,
    "sin": genericity.smooth(),
    "sinh": genericity.smooth(Sign.NONZERO),
    "square": genericity.squared,
    "tanh": genericity.smooth(Sign.NONZERO, is_saturating=True),
}

PRIMITIVES = (
    *map(elementwise, _PLAIN),
    *(elementwise(name, genericity=flow) for name, flow in _FLOWS.items()),
    elementwise("add_any", arithmetic=Arithmetic.SUM, genericity=genericity.added),
    elementwise(
        "add",
        arithmetic=Arithmetic.SUM,
        genericity=genericity.added,
        positions=shifted,
    ),
    elementwise("clamp", arithmetic=Arithmetic.LOWER_BOUND),
    elementwise(
        "convert_element_type",
        entries=Moves.KEPT,
        genericity=_cast_entries,
        positions=cast,
    ),
    elementwise(
        "copy", entries=Moves.KEPT, genericity=genericity.kept, positions=hand_on
    ),
    elementwise(
        "div",
        arithmetic=Arithmetic.QUOTIENT,
        genericity=genericity.multiplied,
        rule=multiplied,
    ),
    elementwise("eq", positions=compared, meets=met_by_comparison),
    elementwise("lt", positions=less),
    elementwise(
        "max", arithmetic=Arithmetic.LOWER_BOUND, genericity=genericity.at_least
    ),
    elementwise(
        "mul",
        arithmetic=Arithmetic.PRODUCT,
        genericity=genericity.multiplied,
        rule=multiplied,
    ),
    elementwise("ne", positions=compared, meets=met_by_comparison),
    elementwise(
        "rsqrt",
        arithmetic=Arithmetic.ROOT,
        genericity=genericity.increasing(Sign.POSITIVE),
    ),
    elementwise("select_n", positions=selected),
    elementwise("sqrt", arithmetic=Arithmetic.ROOT, genericity=genericity.increasing()),
    elementwise(
        "stop_gradient",
        entries=Moves.KEPT,
        genericity=genericity.kept,
        positions=hand_on,
    ),
    elementwise("sub", arithmetic=Arithmetic.DIFFERENCE, genericity=genericity.added),
)
