"""Ties: what the rules of primitives are made of.

A rule ties axes that must be permuted together, drops or regroups them, or fixes what
is treated by position.
"""

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

from jmudsc.derivation.terms.axis_terms import Terms

BY_POSITION = "is treated by position in {}"

Axes = list[int]  # one term per axis of a value


def unknown(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Fix everything a primitive touches."""
    reason = f"is touched by {eqn.primitive.name}, which has no rule"
    pin_all(terms, (axis for axes in ins for axis in axes), reason)
    return [[terms.fixed(n, reason) for n in out.aval.shape] for out in eqn.outvars]


def tie(terms: Terms, size: int, axes: Sequence[int], of_one: bool = False) -> int:
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


def drop(axes: Axes, numbers: Sequence[SupportsIndex]) -> Axes:
    """Leave out the axes of some numbers."""
    return [axis for i, axis in enumerate(axes) if i not in numbers]


def regroup(terms: Terms, group: Axes, sizes: list[int]) -> Axes:
    """Lay the product of some axes out anew, as one of axes of the given sizes."""
    if len(group) == len(sizes) == 1:
        return group
    new = [terms.leaf(size, origin=group) for size in sizes]
    terms.unify(terms.product(group), terms.product(new))
    return new


def pin_all(terms: Terms, axes: Iterable[int], reason: str) -> None:
    """Fix all of some axes."""
    for axis in axes:
        terms.pin(axis, reason)


def by_position(terms: Terms, axis: int, size: int, eqn: Any) -> int:
    """Fix an axis that is treated by position, and return a fixed one to follow it."""
    reason = BY_POSITION.format(eqn.primitive.name)
    terms.pin(axis, reason)
    return terms.fixed(size, reason)
