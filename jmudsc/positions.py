"""Values that are positions along an axis: `iota`, `argmax`, the indices of `top_k`.

If the units of the axis are permuted, such values are permuted with them. As long as
they are only compared with each other or used to pick from axes of the same units (a
one-hot lookup, a gather of the chosen experts), nothing depends on the order of the
units, and the axis may be permuted. Any other use fixes the axis.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.extend.core as jex

from jmudsc import rules
from jmudsc.rules import Axes
from jmudsc.terms import Terms


@dataclass(frozen=True)
class Tag:
    """What is known of the entries of a value.

    Attributes:
        term: the axis that they are positions of.
        shifted: a number was added, as for wrapping negative positions around; such a
            value may only be thrown away.
        never: the entries are False whatever the order of the units.
    """

    term: int
    shifted: bool = False
    never: bool = False


Tags = Sequence[Tag | None]
Outcome = tuple[list[Axes], list[Tag | None]]


def apply_rule(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    """Return the axes and the tag of each output of an equation.

    Args:
        terms: the arena, changed in place.
        eqn: a jaxpr equation without a jaxpr inside.
        ins: per operand, one term per axis.
        tags: per operand, its tag.

    Returns:
        Per output its axes, and its tag.
    """
    name = eqn.primitive.name
    if name in _MAKERS or (name in _USERS and any(tags)):
        return {**_MAKERS, **_USERS}[name](terms, eqn, ins, tags)
    if name in _CARRIERS and len({tag for tag in tags if tag}) == 1 and tags[0]:
        return rules.apply_rule(terms, eqn, ins), [tags[0]] * len(eqn.outvars)
    return _plain(terms, eqn, ins, tags)


def forget(terms: Terms, tag: Tag | None, user: str) -> None:
    """Fix the axis of a tag because its positions are used otherwise.

    Args:
        terms: the arena.
        tag: of the value used; None and never-true values fix nothing.
        user: what uses it, for the reason.
    """
    if tag is not None and not tag.never:
        terms.pin(tag.term, f"has positions that are used by {user}")


def _plain(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    for tag in tags:
        forget(terms, tag, eqn.primitive.name)
    return rules.apply_rule(terms, eqn, ins), [None] * len(eqn.outvars)


def _iota(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    axes = [terms.leaf(size) for size in eqn.params["shape"]]
    return [axes], [Tag(axes[eqn.params["dimension"]])]


def _argreduce(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    axes = eqn.params["axes"]
    if len(axes) != 1:
        return _plain(terms, eqn, ins, tags)
    out = [axis for i, axis in enumerate(ins[0]) if i not in axes]
    return [out], [Tag(ins[0][axes[0]])]


def _top_k(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    forget(terms, tags[0], "top_k")
    along = eqn.params.get("axis", len(ins[0]) - 1)
    out = list(ins[0])
    out[along] = terms.fixed(eqn.outvars[0].aval.shape[along], "is in order of size")
    return [out, out], [None, Tag(ins[0][along])]


def _sort(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    along, keys = eqn.params["dimension"], eqn.params["num_keys"]
    for tag in tags[:keys]:
        forget(terms, tag, "sort")
    same = [
        rules.tie(terms, size, [axes[i] for axes in ins])
        for i, size in enumerate(eqn.outvars[0].aval.shape)
    ]
    out = list(same)
    out[along] = terms.fixed(terms.size(same[along]), "is in order of size")
    return [out] * len(ins), [None] * keys + list(tags[keys:])


def _compare(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    first, second = tags
    if first is None or second is None or first.shifted or second.shifted:
        return _plain(terms, eqn, ins, tags)
    if terms.size(first.term) != terms.size(second.term):
        return _plain(terms, eqn, ins, tags)
    terms.unify(first.term, second.term)
    return rules.apply_rule(terms, eqn, ins), [None]


def _less(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    """A position is never less than 0."""
    first, second = tags[0], eqn.invars[1]
    is_zero = isinstance(second, jex.Literal) and second.val == 0
    if first is None or first.shifted or not is_zero:
        return _plain(terms, eqn, ins, tags)
    return rules.apply_rule(terms, eqn, ins), [Tag(first.term, never=True)]


def _add(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    """What is added to wrap negative positions around is thrown away later."""
    first, second = tags
    if (
        first is None
        or second is not None
        or not isinstance(eqn.invars[1], jex.Literal)
    ):
        return _plain(terms, eqn, ins, tags)
    return rules.apply_rule(terms, eqn, ins), [Tag(first.term, shifted=True)]


def _select(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    which, case, *others = tags
    if which is not None and which.never:
        return rules.apply_rule(terms, eqn, ins), [case]
    if case and case == others[0] and len(others) == 1 and which is None:
        return rules.apply_rule(terms, eqn, ins), [case]
    return _plain(terms, eqn, ins, tags)


def _gather(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = ins
    forget(terms, tags[0], "gather")
    picked = _picked(terms, eqn, operand, tags[1], numbers.start_index_map)
    batching = numbers.operand_batching_dims
    for i, j in zip(batching, numbers.start_indices_batching_dims, strict=True):
        terms.unify(operand[i], indices[j])
    kept = [
        operand[i]
        if size == terms.size(operand[i]) and i not in picked
        else terms.fixed(size, rules.BY_POSITION.format("gather"))
        for i, size in enumerate(sizes)
        if i not in (*numbers.collapsed_slice_dims, *batching)
    ]
    rest = iter(indices[:-1])
    offset = dict(zip(numbers.offset_dims, kept, strict=True))
    rank = len(eqn.outvars[0].aval.shape)
    return [[offset[i] if i in offset else next(rest) for i in range(rank)]], [None]


def _scatter(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = ins
    for tag in (tags[0], tags[2]):
        forget(terms, tag, eqn.primitive.name)
    picked = _picked(terms, eqn, operand, tags[1], numbers.scatter_dims_to_operand_dims)
    batching = numbers.operand_batching_dims
    for i, j in zip(batching, numbers.scatter_indices_batching_dims, strict=True):
        terms.unify(operand[i], indices[j])
    outside = (*numbers.inserted_window_dims, *batching)
    window = [i for i in range(len(operand)) if i not in outside]
    for i, j in zip(window, numbers.update_window_dims, strict=True):
        if terms.size(operand[i]) == terms.size(updates[j]) and i not in picked:
            terms.unify(operand[i], updates[j])
        else:
            terms.pin(operand[i], rules.BY_POSITION.format(eqn.primitive.name))
            terms.pin(updates[j], rules.BY_POSITION.format(eqn.primitive.name))
    scattered = [j for j in range(len(updates)) if j not in numbers.update_window_dims]
    for j, axis in zip(scattered, indices[:-1], strict=True):
        terms.unify(updates[j], axis)
    if eqn.primitive.name == "scatter" and not eqn.params["unique_indices"]:
        for j, axis in enumerate(indices[:-1]):  # of two updates the later one stays
            if j not in numbers.scatter_indices_batching_dims:
                terms.pin(axis, rules.BY_POSITION.format("scatter"))
    return [list(operand)], [None]


def _picked(
    terms: Terms, eqn: Any, operand: Axes, tag: Tag | None, axes: Sequence[int]
) -> Sequence[int]:
    """Tie an axis picked from by positions to theirs, fix it otherwise."""
    sizes = [terms.size(operand[axis]) for axis in axes]
    if tag and not tag.shifted and sizes == [terms.size(tag.term)]:
        terms.unify(tag.term, operand[axes[0]])
        return axes
    forget(terms, tag, eqn.primitive.name)
    for axis in axes:
        terms.pin(operand[axis], rules.BY_POSITION.format(eqn.primitive.name))
    return axes


# Where tags come from, what uses them without harm, and what hands them on.
_MAKERS: dict[str, Callable[..., Outcome]] = {
    "argmax": _argreduce,
    "argmin": _argreduce,
    "gather": _gather,
    "iota": _iota,
    "scatter": _scatter,
    "scatter-add": _scatter,
    "scatter-max": _scatter,
    "scatter-min": _scatter,
    "scatter-mul": _scatter,
    "scatter-sub": _scatter,
    "sort": _sort,
    "top_k": _top_k,
}
_USERS: dict[str, Callable[..., Outcome]] = {
    "add": _add,
    "eq": _compare,
    "lt": _less,
    "ne": _compare,
    "select_n": _select,
}
_CARRIERS = set(
    "broadcast_in_dim convert_element_type copy optimization_barrier reshape slice "
    "split squeeze stop_gradient transpose".split()
)
