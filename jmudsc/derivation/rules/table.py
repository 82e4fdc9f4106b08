"""Table: the record of every primitive that something is known of, by name."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jmudsc.derivation.rules import (
    collectives,
    contractions,
    control_flow,
    elementwise,
    indexing,
    linear_algebra,
    ordering,
    reductions,
    shapes,
    slicing,
    windows,
)
from jmudsc.derivation.rules.common import unknown
from jmudsc.derivation.rules.positions import forget_all
from jmudsc.derivation.rules.primitive import AxisTerms, Known, Outcome, Primitive
from jmudsc.derivation.terms.axis_terms import Terms

FAMILIES = (
    collectives,
    contractions,
    control_flow,
    elementwise,
    indexing,
    linear_algebra,
    ordering,
    reductions,
    shapes,
    slicing,
    windows,
)

# What jmudsc ships; one record a primitive.
SHIPPED: Mapping[str, Primitive] = MappingProxyType(
    {record.name: record for family in FAMILIES for record in family.PRIMITIVES}
)
_registered: dict[str, Primitive] = {}


def primitive_of(eqn: Any) -> Primitive:
    """Return what is known of the primitive of an equation.

    Args:
        eqn: a jaxpr equation.

    Returns:
        Its record; one without any facet for a primitive that is not in the table.
    """
    name = eqn.primitive.name
    return _registered.get(name) or SHIPPED.get(name) or Primitive(name)


def apply_rule(
    terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Sequence[Known]
) -> Outcome:
    """Return the axes of each output of an equation, tying and fixing terms.

    Args:
        terms: the arena, changed in place.
        eqn: a jaxpr equation without a jaxpr that is walked through.
        ins: per operand, one term per axis.
        tags: per operand, what its entries are positions of.

    Returns:
        Per output one term per axis, and what its entries are positions of.
    """
    record = primitive_of(eqn)
    rule, positions = record.rule or unknown, record.positions or forget_all
    return positions(rule, terms, eqn, ins, tags)


def contraction(eqn: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return per operand the axes that an equation sums over, if it is a contraction.

    Args:
        eqn: a jaxpr equation.

    Returns:
        Two tuples of axis numbers for products and convolutions (the input features),
        None for any other primitive.
    """
    summed = primitive_of(eqn).summed
    return None if summed is None else summed(eqn)


def axis_map(eqn: Any, number: int) -> Mapping[int, int]:
    """Say where the axes of an operand are in the output.

    Args:
        eqn: a jaxpr equation.
        number: which operand.

    Returns:
        The axes of the operand that come out unmixed with one another; none for a
        primitive that is not followed.
    """
    where = primitive_of(eqn).axis_map
    return {} if where is None else where(eqn, number)
