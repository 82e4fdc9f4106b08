"""Table: the record of every primitive that something is known of, by name."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.extend.core as jex

from jmudsc.derivation.rules import (
    attention,
    collectives,
    contractions,
    control_flow,
    elementwise,
    indexing,
    linear_algebra,
    ordering,
    random_numbers,
    reductions,
    shapes,
    slicing,
    windows,
)
from jmudsc.derivation.rules.common import shape_of, unknown
from jmudsc.derivation.rules.positions import forget_all
from jmudsc.derivation.rules.primitive import (
    AxisTerms,
    Known,
    Outcome,
    Primitive,
    Rule,
)
from jmudsc.derivation.terms.axis_terms import Terms

FAMILIES = (
    attention,
    collectives,
    contractions,
    control_flow,
    elementwise,
    indexing,
    linear_algebra,
    ordering,
    random_numbers,
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


def register_rule(
    primitive: str | jex.Primitive,
    rule: Rule | Primitive,
    *,
    replace: bool = False,
) -> None:
    """Say what a primitive does to the axes of its operands: a custom one, a kernel.

    A rule is `(terms, eqn, ins) -> outs`: `ins` has one list of terms for each operand
    of the equation `eqn`, one term per axis, and `outs` the same for each output. It
    ties axes that must be permuted together and fixes those that are treated by
    position; `jmudsc.derivation.rules.common` has the verbs. Whatever the rule does
    not tie or fix may be permuted: prove it on your model with `check_spec`. The rule
    is for all traces after this call; registering it anew replaces it.

    Args:
        primitive: the primitive, or its name.
        rule: its rule, or a whole record with more facets.
        replace: whether it may replace what jmudsc ships for this primitive.

    Raises:
        TypeError: if one of the two is of no such type.
        ValueError: if jmudsc ships a record for the primitive and `replace` is not set,
            or the record is for another primitive.

    Example:
        >>> import jmudsc
        >>> from jmudsc.derivation.rules.elementwise import aligned
        >>> jmudsc.register_rule("my_activation", aligned)
    """
    where = "register_rule"
    if not isinstance(primitive, str | jex.Primitive):
        raise TypeError(
            f"{where}: expected a primitive or its name, got a "
            f"{type(primitive).__name__}. Pass the jax.extend.core.Primitive."
        )
    name = primitive if isinstance(primitive, str) else primitive.name
    if not isinstance(rule, Primitive) and not callable(rule):
        raise TypeError(
            f'{where}: expected a rule for "{name}", got a {type(rule).__name__}. Pass '
            "a function (terms, eqn, ins) -> outs, or a record."
        )
    record = rule if isinstance(rule, Primitive) else Primitive(name, rule=rule)
    if record.name != name:
        raise ValueError(
            f'{where}: expected a record of "{name}", got one of "{record.name}". '
            "Register it under its own name."
        )
    if name in SHIPPED and not replace:
        raise ValueError(
            f"{where}: expected a primitive that jmudsc has no record of, got "
            f'"{name}". Pass replace=True to replace its record.'
        )
    _registered[name] = record


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
    outs, made = positions(rule, terms, eqn, ins, tags)
    if record.name in _registered:
        _check_outputs(terms, eqn, outs)
    return outs, made


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


def _check_outputs(terms: Terms, eqn: Any, outs: Sequence[AxisTerms]) -> None:
    """Refuse what a registered rule returns if it does not fit the outputs."""
    shapes = [shape_of(var) for var in eqn.outvars]
    sizes = [tuple(map(terms.size, axes)) for axes in outs]
    if sizes != shapes:
        raise ValueError(
            f'rule of "{eqn.primitive.name}": expected axes of sizes {shapes} for the '
            f"outputs, got {sizes}. Return one list of terms per output, with one term "
            "per axis."
        )
