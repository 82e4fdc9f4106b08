"""Values that are positions along an axis: `iota`, `argmax`, the indices of `top_k`.

If the units of the axis are permuted, such values are permuted with them. As long as
they are only compared with each other or used to pick from axes of the same units (a
one-hot lookup, a gather of the chosen experts), nothing depends on the order of the
units, and the axis may be permuted. Any other use fixes the axis.
"""

from collections.abc import Callable, Sequence, Set
from typing import Any, TypeGuard

import jax.extend.core as jex
import jax.numpy as jnp
from jax.lax import GatherScatterMode

from jmudsc.derivation.rules import elementwise
from jmudsc.derivation.rules.common import Axes, BY_POSITION, tie
from jmudsc.derivation.terms.axis_terms import Terms
from jmudsc.derivation.terms.values import Columns, Tag

IN_ORDER = "is in order of size"

Known = Tag | Columns | None
Tags = Sequence[Known]
Single = Sequence[Tag | None]
Outcome = tuple[list[Axes], list[Known]]


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
    if name in _MAKERS:
        return _MAKERS[name](terms, eqn, ins, tags)
    single = [tag for tag in tags if not isinstance(tag, Columns)]
    if len(single) < len(tags):
        return _plain(terms, eqn, ins, tags)
    if name in _USERS and any(single):
        return _USERS[name](terms, eqn, ins, single)
    if name in _CARRIERS and len({tag for tag in single if tag}) == 1 and single[0]:
        return elementwise.apply_rule(terms, eqn, ins), [single[0]] * len(eqn.outvars)
    return _plain(terms, eqn, ins, tags)


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


def _plain(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    for tag in tags:
        forget(terms, tag, eqn.primitive.name)
    return elementwise.apply_rule(terms, eqn, ins), [None] * len(eqn.outvars)


def _iota(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    axes = [terms.leaf(size) for size in eqn.params["shape"]]
    return [axes], [Tag(axes[eqn.params["dimension"]])]


def _argreduce(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    axes = eqn.params["axes"]
    if len(axes) != 1:
        return _plain(terms, eqn, ins, tags)
    out = [axis for i, axis in enumerate(ins[0]) if i not in axes]
    _pin_if_equal(terms, eqn, ins[0][axes[0]])
    return [out], [Tag(ins[0][axes[0]])]


def _top_k(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    forget(terms, tags[0], "top_k")
    along = eqn.params.get("axis", len(ins[0]) - 1)
    _pin_if_equal(terms, eqn, ins[0][along])
    out = list(ins[0])
    out[along] = terms.fixed(eqn.outvars[0].aval.shape[along], IN_ORDER)
    return [out, out], [None, Tag(ins[0][along])]


def _sort(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    along, keys = eqn.params["dimension"], eqn.params["num_keys"]
    for tag in tags[:keys]:
        forget(terms, tag, "sort")
    same = [
        tie(terms, size, [axes[i] for axes in ins])
        for i, size in enumerate(eqn.outvars[0].aval.shape)
    ]
    if keys < len(ins):
        _pin_if_equal(terms, eqn, same[along])
    out = list(same)
    out[along] = terms.fixed(terms.size(same[along]), IN_ORDER)
    return [out] * len(ins), [None] * keys + list(tags[keys:])


def _pin_if_equal(terms: Terms, eqn: Any, along: int) -> None:
    """Of equal entries the first leads, and numbers other than floats often are."""
    if not jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating):
        terms.pin(along, BY_POSITION.format(f"{eqn.primitive.name} among equal ones"))


def _are_positions(tag: Tag | None) -> TypeGuard[Tag]:
    return tag is not None and not tag.shifted and not tag.never


def _compare(terms: Terms, eqn: Any, ins: list[Axes], tags: Single) -> Outcome:
    first, second = tags
    if not _are_positions(first) or not _are_positions(second):
        return _plain(terms, eqn, ins, tags)
    if terms.size(first.term) != terms.size(second.term):
        return _plain(terms, eqn, ins, tags)
    terms.unify(first.term, second.term)
    return elementwise.apply_rule(terms, eqn, ins), [None]


def _less(terms: Terms, eqn: Any, ins: list[Axes], tags: Single) -> Outcome:
    """A position is never less than 0."""
    first, second = tags[0], eqn.invars[1]
    is_zero = isinstance(second, jex.Literal) and second.val == 0
    if not _are_positions(first) or not is_zero:
        return _plain(terms, eqn, ins, tags)
    return elementwise.apply_rule(terms, eqn, ins), [Tag(first.term, never=True)]


def _add(terms: Terms, eqn: Any, ins: list[Axes], tags: Single) -> Outcome:
    """What is added to wrap negative positions around is thrown away later."""
    first, second = tags
    if (
        first is None
        or second is not None
        or not isinstance(eqn.invars[1], jex.Literal)
    ):
        return _plain(terms, eqn, ins, tags)
    return elementwise.apply_rule(terms, eqn, ins), [Tag(first.term, shifted=True)]


def _select(terms: Terms, eqn: Any, ins: list[Axes], tags: Single) -> Outcome:
    which, case, *others = tags
    if which is not None and which.never:
        return elementwise.apply_rule(terms, eqn, ins), [case]
    if case and case == others[0] and len(others) == 1 and which is None:
        return elementwise.apply_rule(terms, eqn, ins), [case]
    return _plain(terms, eqn, ins, tags)


def _convert(terms: Terms, eqn: Any, ins: list[Axes], tags: Single) -> Outcome:
    if eqn.outvars[0].aval.dtype.kind == "b":
        return _plain(terms, eqn, ins, tags)
    return elementwise.apply_rule(terms, eqn, ins), [tags[0]]


def _concatenate(terms: Terms, eqn: Any, ins: list[Axes], tags: Single) -> Outcome:
    """Columns put side by side along the last axis stay what they are."""
    along = eqn.params["dimension"]
    if along != len(ins[0]) - 1 or any(terms.size(axes[along]) != 1 for axes in ins):
        return _plain(terms, eqn, ins, tags)
    return elementwise.apply_rule(terms, eqn, ins), [Columns(tuple(tags))]


def _gather(terms: Terms, eqn: Any, ins: list[Axes], tags: Tags) -> Outcome:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = ins
    forget(terms, tags[0], "gather")
    whole = {i for i, size in enumerate(sizes) if size == terms.size(operand[i])}
    whole = whole if eqn.params["mode"] in _CLAMPED else set()
    along = tuple(map(int, numbers.start_index_map))
    picked = _picked(terms, eqn, operand, tags[1], along, whole)
    batching = numbers.operand_batching_dims
    for i, j in zip(batching, numbers.start_indices_batching_dims, strict=True):
        terms.unify(operand[i], indices[j])
    kept = [
        operand[i]
        if size == terms.size(operand[i]) and i not in picked
        else terms.fixed(size, BY_POSITION.format("gather"))
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
    along = tuple(map(int, numbers.scatter_dims_to_operand_dims))
    picked = _picked(terms, eqn, operand, tags[1], along)
    batching = numbers.operand_batching_dims
    for i, j in zip(batching, numbers.scatter_indices_batching_dims, strict=True):
        terms.unify(operand[i], indices[j])
    outside = (*numbers.inserted_window_dims, *batching)
    window = [i for i in range(len(operand)) if i not in outside]
    for i, j in zip(window, numbers.update_window_dims, strict=True):
        if terms.size(operand[i]) == terms.size(updates[j]) and i not in picked:
            terms.unify(operand[i], updates[j])
        else:
            terms.pin(operand[i], BY_POSITION.format(eqn.primitive.name))
            terms.pin(updates[j], BY_POSITION.format(eqn.primitive.name))
    scattered = [j for j in range(len(updates)) if j not in numbers.update_window_dims]
    for j, axis in zip(scattered, indices[:-1], strict=True):
        terms.unify(updates[j], axis)
    if eqn.primitive.name == "scatter" and not eqn.params["unique_indices"]:
        for j, axis in enumerate(indices[:-1]):  # of two updates the later one stays
            if j not in numbers.scatter_indices_batching_dims:
                terms.pin(axis, BY_POSITION.format("scatter"))
    return [list(operand)], [None]


def _picked(
    terms: Terms,
    eqn: Any,
    operand: Axes,
    tag: Known,
    axes: Sequence[int],
    whole: Set[int] = frozenset(),
) -> set[int]:
    """Tie every axis picked from to the positions that pick from it, or fix it.

    An axis that is taken whole stays as it is, wherever the index points.
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
        elif _are_positions(column) and _are_alike(terms, column.term, term):
            terms.unify(column.term, term)
        else:
            forget(terms, column, name)
            terms.pin(term, BY_POSITION.format(name))
    return {axis for axis in axes if axis not in whole}


def _are_alike(terms: Terms, one: int, other: int) -> bool:
    return terms.size(one) == terms.size(other)


# Where a slice that would reach outside is moved inside: one as large as the axis then
# starts at 0.
_CLAMPED = (GatherScatterMode.CLIP, GatherScatterMode.PROMISE_IN_BOUNDS)

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
    "concatenate": _concatenate,
    "convert_element_type": _convert,
    "eq": _compare,
    "lt": _less,
    "ne": _compare,
    "select_n": _select,
}
_CARRIERS = set(
    "broadcast_in_dim copy optimization_barrier reshape slice "
    "split squeeze stop_gradient transpose".split()
)
