"""Positions: values that say where on an axis something is (`iota`, `argmax`, ...).

If the units of the axis are permuted, such values are permuted with them. As long as
they are only compared with each other or used to pick from axes of the same units (a
one-hot lookup, a gather of the chosen experts), nothing depends on the order of the
units, and the axis may be permuted. Any other use fixes the axis.
"""

from collections.abc import Sequence, Set
from typing import Any, TypeGuard

import jax.extend.core as jex
import jax.numpy as jnp

from jmudsc.derivation.rules.common import BY_POSITION
from jmudsc.derivation.rules.primitive import (
    AxisTerms,
    Known,
    Outcome,
    Positions,
    Rule,
)
from jmudsc.derivation.terms.axis_terms import Term, Terms
from jmudsc.derivation.terms.values import Columns, Tag, Value

Tags = Sequence[Known]


def forget(terms: Terms, tag: Known, user: str) -> None:
    """Fix the axis of a tag because its positions are used otherwise.

    Args:
        terms: the arena.
        tag: of the value used; None and never-true values fix nothing.
        user: what uses it, for the reason.
    """
    if isinstance(tag, Columns):
        for column in tag.tags:
            forget(terms, column, user)
    elif tag is not None and not tag.never:
        terms.pin(tag.term, f"has positions that are used by {user}")


def forget_all(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Tags
) -> Outcome:
    """Fix the axes that any operand holds positions of, then apply the rule."""
    for tag in tags:
        forget(terms, tag, eqn.primitive.name)
    return rule(terms, eqn, ins), [None] * len(eqn.outvars)


def hand_on(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Tags
) -> Outcome:
    """Positions that are moved about stay positions of the same axis."""
    single = {tag for tag in tags if tag}
    first = tags[0] if tags else None
    if len(single) == 1 and isinstance(first, Tag):
        return rule(terms, eqn, ins), [first] * len(eqn.outvars)
    return forget_all(rule, terms, eqn, ins, tags)


def if_single(follow: Positions) -> Positions:
    """Follow positions of one axis each; where there are none, only apply the rule."""

    def positions(
        rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Tags
    ) -> Outcome:
        if not any(tags) or any(isinstance(tag, Columns) for tag in tags):
            return forget_all(rule, terms, eqn, ins, tags)
        return follow(rule, terms, eqn, ins, tags)

    return positions


def are_positions(tag: Known) -> TypeGuard[Tag]:
    """Return whether entries are positions of one axis, as they are and never false."""
    return isinstance(tag, Tag) and not tag.shifted and not tag.never


@if_single
def compared(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Tags
) -> Outcome:
    """Positions that are compared with one another are positions of the same units."""
    first, second = tags
    if not are_positions(first) or not are_positions(second):
        return forget_all(rule, terms, eqn, ins, tags)
    if terms.size(first.term) != terms.size(second.term):
        return forget_all(rule, terms, eqn, ins, tags)
    terms.unify(first.term, second.term)
    return rule(terms, eqn, ins), [None]


@if_single
def less(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Tags
) -> Outcome:
    """A position is never less than 0."""
    first, second = tags[0], eqn.invars[1]
    is_zero = isinstance(second, jex.Literal) and second.val == 0
    if not are_positions(first) or not is_zero:
        return forget_all(rule, terms, eqn, ins, tags)
    return rule(terms, eqn, ins), [Tag(first.term, never=True)]


@if_single
def shifted(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Tags
) -> Outcome:
    """What is added to wrap negative positions around is thrown away later."""
    first, second = tags
    is_number = isinstance(eqn.invars[1], jex.Literal)
    if not isinstance(first, Tag) or second is not None or not is_number:
        return forget_all(rule, terms, eqn, ins, tags)
    return rule(terms, eqn, ins), [Tag(first.term, shifted=True)]


@if_single
def selected(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Tags
) -> Outcome:
    """What is selected among equal positions, or by what is never true, is known."""
    which, case, *others = tags
    if isinstance(which, Tag) and which.never:
        return rule(terms, eqn, ins), [case]
    if case and case == others[0] and len(others) == 1 and which is None:
        return rule(terms, eqn, ins), [case]
    return forget_all(rule, terms, eqn, ins, tags)


@if_single
def cast(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Tags
) -> Outcome:
    """Positions stay positions in a type that can hold them, as booleans cannot."""
    (tag,) = tags
    dtype = eqn.outvars[0].aval.dtype
    if isinstance(tag, Tag) and can_hold(dtype, terms.size(tag.term)):
        return rule(terms, eqn, ins), [tag]
    return forget_all(rule, terms, eqn, ins, tags)


def met_by_comparison(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], picked: Any
) -> list[Value]:
    """Every unit of an axis of positions is compared at every entry of the output."""
    tags = [value.tag for value in ins if isinstance(value.tag, Tag)]
    return [Value([*outs[0].axes, tag.term]) for tag in tags]


def _are_of(tag: Known, terms: Terms, term: Term) -> TypeGuard[Tag]:
    """Return whether entries are positions of an axis as long as another one."""
    return are_positions(tag) and terms.size(tag.term) == terms.size(term)


def can_hold(dtype: Any, size: int) -> bool:
    """Return whether a type tells all positions of an axis of some size apart.

    Args:
        dtype: of numbers; booleans are none.
        size: number of positions.

    Returns:
        Whether 0, ..., size - 1 are all numbers of it, as they are.
    """
    if jnp.issubdtype(dtype, jnp.integer):
        return size - 1 <= int(jnp.iinfo(dtype).max)
    if jnp.issubdtype(dtype, jnp.floating):
        known = jnp.finfo(dtype)
        return size - 1 <= min(2 ** (known.nmant + 1), float(known.max))
    return False


def tie_picked(
    terms: Terms,
    eqn: Any,
    operand: AxisTerms,
    tag: Known,
    axes: Sequence[int],
    whole: Set[int] = frozenset(),
    windows: Set[int] = frozenset(),
) -> None:
    """Tie each axis picked from to the positions that pick from it, or fix it.

    Args:
        terms: the arena.
        eqn: a gather or scatter.
        operand: the axes of what is picked from.
        tag: what the index values are positions of.
        axes: the axes that the columns of the index values pick from.
        whole: those that are taken whole: they stay, wherever the index points.
        windows: those from which several positions in a row are taken: they are fixed.
    """
    name = eqn.primitive.name
    columns = tag.tags if isinstance(tag, Columns) else (tag,)
    if len(columns) != len(axes):
        forget(terms, tag, name)
        columns = (None,) * len(axes)
    for axis, column in zip(axes, columns, strict=True):
        term = operand[axis]
        if axis in whole:
            forget(terms, column, name)
        elif axis not in windows and _are_of(column, terms, term):
            terms.unify(column.term, term)
        else:
            forget(terms, column, name)
            terms.pin(term, BY_POSITION.format(name))
