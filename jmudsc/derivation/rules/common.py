"""Common: the verbs that rules are made of.

A rule ties axes that must be permuted together, drops or regroups them, or fixes what
is treated by position.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsIndex

from jmudsc.derivation.rules.primitive import AxisTerms, Cost
from jmudsc.derivation.terms.axis_terms import Term, Terms

BY_POSITION = "is treated by position in {}"


def unknown(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Fix everything a primitive touches."""
    reason = f"is touched by {eqn.primitive.name}, which has no rule"
    pin_all(terms, (axis for axes in ins for axis in axes), reason)
    return [[terms.fixed(n, reason) for n in shape_of(out)] for out in eqn.outvars]


def tie(terms: Terms, size: int, axes: Sequence[Term], of_one: bool = False) -> Term:
    """Unify the axes of full size and return what they are; a new leaf if none is.

    Args:
        terms: the arena, changed in place.
        size: the full size; axes of size 1 are broadcast.
        axes: the terms.
        of_one: whether what they make sums over units if one of them does (a product).

    Returns:
        One term of that size.
    """
    full = dict.fromkeys(axis for axis in axes if terms.size(axis) == size)
    if len(full) == 1:
        return next(iter(full))
    tied = terms.leaf(size, origin=full, of_one=of_one)
    for axis in full:
        terms.unify(axis, tied)
    return tied


def drop(axes: AxisTerms, numbers: Sequence[SupportsIndex]) -> AxisTerms:
    """Leave out the axes of some numbers."""
    return [axis for i, axis in enumerate(axes) if i not in numbers]


def regroup(terms: Terms, group: AxisTerms, sizes: list[int]) -> AxisTerms:
    """Lay the product of some axes out anew, as one of axes of the given sizes."""
    if len(group) == len(sizes) == 1:
        return group
    new = [terms.leaf(size, origin=group) for size in sizes]
    terms.unify(terms.product(group), terms.product(new))
    return new


def pin_all(terms: Terms, axes: Iterable[Term], reason: str) -> None:
    """Fix all of some axes."""
    for axis in axes:
        terms.pin(axis, reason)


def by_position(terms: Terms, axis: Term, size: int, eqn: Any) -> Term:
    """Fix an axis that is treated by position, and return a fixed one to follow it."""
    reason = BY_POSITION.format(eqn.primitive.name)
    terms.pin(axis, reason)
    return terms.fixed(size, reason)


def shape_of(var: Any) -> tuple[int, ...]:
    """Return the shape of a variable of a jaxpr."""
    return tuple(var.aval.shape)


def order_of(eqn: Any) -> Sequence[int]:
    """Return the order in which a `reshape` reads the axes of its operand."""
    order = eqn.params["dimensions"]
    return range(len(shape_of(eqn.invars[0]))) if order is None else order


def same_axes(eqn: Any, number: int) -> Mapping[int, int]:
    """Say that every axis of an operand is the axis of that number of the output."""
    return {axis: axis for axis in range(len(shape_of(eqn.invars[number])))}


def all_but(shape: tuple[int, ...], along: int) -> Mapping[int, int]:
    """Say that all axes but one stay as they are."""
    return {axis: axis for axis in range(len(shape)) if axis != along}


def those_left(
    shape: tuple[int, ...], gone: Sequence[SupportsIndex]
) -> Mapping[int, int]:
    """Say where axes are after some have gone."""
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    return {axis: new for new, axis in enumerate(kept)}


def negligible(eqn: Any) -> Cost:
    """Say that an equation costs nothing beside the contractions around it."""
    return Cost()
