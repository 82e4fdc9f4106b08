"""Indexing: primitives that read or write at index values."""

from collections.abc import Mapping, Sequence
from typing import Any

from jax.lax import GatherScatterMode

from jmudsc.derivation.rules import generic_layouts
from jmudsc.derivation.rules.common import BY_POSITION, negligible, shape_of
from jmudsc.derivation.rules.positions import forget, tie_picked
from jmudsc.derivation.rules.primitive import (
    AxisTerms,
    Known,
    Lookup,
    Outcome,
    Primitive,
    Rule,
)
from jmudsc.derivation.terms.axis_terms import Terms
from jmudsc.derivation.terms.values import carried, Picked, Value

# Where a slice that would reach outside is moved inside: one as large as the axis then
# starts at 0.
_CLAMPED = (GatherScatterMode.CLIP, GatherScatterMode.PROMISE_IN_BOUNDS)


def gather(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Carry axes taken whole; those picked from are fixed."""
    return _gathered(terms, eqn, ins, None)


def gather_by_positions(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Sequence[Known]
) -> Outcome:
    """An axis picked from by positions along itself may be permuted."""
    forget(terms, tags[0], "gather")
    return _gathered(terms, eqn, ins, tags[1]), [None]


def _gathered(
    terms: Terms, eqn: Any, ins: list[AxisTerms], tag: Known
) -> list[AxisTerms]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand, indices = ins
    along = tuple(map(int, numbers.start_index_map))
    full = {i for i, size in enumerate(sizes) if size == terms.size(operand[i])}
    whole = full if eqn.params["mode"] in _CLAMPED else set()
    windows = {i for i in along if sizes[i] != 1} - whole
    tie_picked(terms, eqn, operand, tag, along, whole, windows)
    picked = {axis for axis in along if axis not in whole}
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
    rank = len(shape_of(eqn.outvars[0]))
    return [[offset[i] if i in offset else next(rest) for i in range(rank)]]


def _taken_whole(eqn: Any, number: int) -> Mapping[int, int]:
    if number > 0:
        return {}
    numbers = eqn.params["dimension_numbers"]
    shape, sizes = shape_of(eqn.invars[0]), eqn.params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    pairs = zip(kept, map(int, numbers.offset_dims), strict=True)
    return {axis: new for axis, new in pairs if sizes[axis] == shape[axis]}


def _columns(eqn: Any) -> tuple[Lookup, ...]:
    """Every column of the index values picks from one axis."""
    axes = tuple(map(int, eqn.params["dimension_numbers"].start_index_map))
    shape, sizes = shape_of(eqn.invars[0]), eqn.params["slice_sizes"]
    along = _index_axes(eqn)
    return tuple(
        Lookup(0, axis, 1, column, len(axes), along)
        for column, axis in enumerate(axes)
        if sizes[axis] == 1 < shape[axis]
    )


def _index_axes(eqn: Any) -> tuple[int | None, ...]:
    """Return along which axes of the output of a `gather` its index value varies."""
    offset = set(map(int, eqn.params["dimension_numbers"].offset_dims))
    rank = len(shape_of(eqn.outvars[0]))
    axes = [axis for axis in range(rank) if axis not in offset]
    shape = shape_of(eqn.invars[1])[:-1]
    return tuple(a if n > 1 else None for a, n in zip(axes, shape, strict=True))


def _may_be_zero(eqn: Any) -> bool:
    """Whether zeros, not NaNs, come out where an index is outside."""
    is_filled = eqn.params["mode"] == GatherScatterMode.FILL_OR_DROP
    return is_filled and eqn.params["fill_value"] is not None


def _read_from(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], picked: Picked
) -> list[Value]:
    """What is picked from is there at every position of the output."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand = ins[0]
    from_ = [
        operand.axes[axis]
        for axis in numbers.start_index_map
        if sizes[axis] != terms.size(operand.axes[axis])
    ]
    axes = [*outs[0].axes, *from_]
    return [Value(axes, picks=carried([operand], [_taken_whole(eqn, 0)], len(axes)))]


def accumulate(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Tie window axes written whole; those written at an index are fixed."""
    return _scattered(terms, eqn, ins, None)


def accumulate_by_positions(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Sequence[Known]
) -> Outcome:
    """An axis written to at positions along itself may be permuted."""
    for tag in (tags[0], tags[2]):
        forget(terms, tag, eqn.primitive.name)
    return _scattered(terms, eqn, ins, tags[1]), [None]


def overwrite(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """The same; of two updates of one entry the later one stays."""
    outs = accumulate(terms, eqn, ins)
    _pin_order(terms, eqn, ins)
    return outs


def overwrite_by_positions(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Sequence[Known]
) -> Outcome:
    """The same; of two updates of one entry the later one stays."""
    outcome = accumulate_by_positions(rule, terms, eqn, ins, tags)
    _pin_order(terms, eqn, ins)
    return outcome


def _pin_order(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> None:
    if not eqn.params["unique_indices"]:
        mapped = eqn.params["dimension_numbers"].scatter_indices_batching_dims
        for j, axis in enumerate(ins[1][:-1]):
            if j not in mapped:
                terms.pin(axis, BY_POSITION.format(eqn.primitive.name))


def _scattered(
    terms: Terms, eqn: Any, ins: list[AxisTerms], tag: Known
) -> list[AxisTerms]:
    numbers = eqn.params["dimension_numbers"]
    operand, indices, updates = ins
    along = tuple(map(int, numbers.scatter_dims_to_operand_dims))
    tie_picked(terms, eqn, operand, tag, along)
    batching = numbers.operand_batching_dims
    for i, j in zip(batching, numbers.scatter_indices_batching_dims, strict=True):
        terms.unify(operand[i], indices[j])
    outside = (*numbers.inserted_window_dims, *batching)
    window = [i for i in range(len(operand)) if i not in outside]
    for i, j in zip(window, numbers.update_window_dims, strict=True):
        if terms.size(operand[i]) == terms.size(updates[j]) and i not in along:
            terms.unify(operand[i], updates[j])
        else:
            terms.pin(operand[i], BY_POSITION.format(eqn.primitive.name))
            terms.pin(updates[j], BY_POSITION.format(eqn.primitive.name))
    scattered = [j for j in range(len(updates)) if j not in numbers.update_window_dims]
    for j, axis in zip(scattered, indices[:-1], strict=True):
        terms.unify(updates[j], axis)
    return [list(operand)]


def _written_to(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], picked: Picked
) -> list[Value]:
    """What is written to is there for every position that is written from."""
    mapped = eqn.params["dimension_numbers"].scatter_indices_batching_dims
    written = [a for i, a in enumerate(ins[1].axes[:-1]) if i not in mapped]
    return [Value([*outs[0].axes, *written])]


def _accumulating(name: str) -> Primitive:
    return Primitive(
        name,
        rule=accumulate,
        positions=accumulate_by_positions,
        meets=_written_to,
        cost=negligible,
    )


PRIMITIVES = (
    Primitive(
        "gather",
        rule=gather,
        positions=gather_by_positions,
        axis_map=_taken_whole,
        lookups=_columns,
        meets=_read_from,
        genericity=generic_layouts.looked_up(_taken_whole, _may_be_zero),
        cost=negligible,
    ),
    Primitive(
        "scatter",
        rule=overwrite,
        positions=overwrite_by_positions,
        meets=_written_to,
        cost=negligible,
    ),
    _accumulating("scatter-add"),
    _accumulating("scatter-max"),
    _accumulating("scatter-min"),
    _accumulating("scatter-mul"),
    _accumulating("scatter-sub"),
)
