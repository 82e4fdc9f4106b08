"""Meetings: the axes that an equation brings together on no value of the program.

A contraction multiplies its operands unit by unit before it sums, a gather reads for
every position of its output all those it picks from, a reversal or a running sum moves
what is at one position to another. Such an equation is seen as one more value, with all
of these axes on it: units that go with one another must do so there as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jmudsc.derivation import index_order
from jmudsc.derivation.rules.common import regroup
from jmudsc.derivation.rules.elementwise import contraction
from jmudsc.derivation.terms.axis_terms import Terms
from jmudsc.derivation.terms.values import Place, Tag, Value
from jmudsc.derivation.value_numbering import Numbers

_CUTTING = ("concatenate", "pad", "slice", "split", "tile")


def meetings(
    terms: Terms,
    eqn: Any,
    ins: Sequence[Value],
    outs: Sequence[Value],
    since: int,
    numbers: Numbers,
    places: Mapping[int, Place],
) -> list[Value]:
    """Return what an equation brings together.

    Args:
        terms: the arena.
        eqn: a jaxpr equation without a jaxpr inside.
        ins: its operands.
        outs: its outputs.
        since: number of terms there were before its rule was applied.
        numbers: the numbers of values.
        places: where values can be read, by number.

    Returns:
        Values with the axes that meet; none if they meet on an operand or output.
    """
    name = eqn.primitive.name
    if contraction(eqn) is not None:
        made = index_order.made(eqn, ins, numbers, places)
        return [_product(terms, eqn, ins, outs[0], made)]
    if name == "gather":
        return [_read_from(terms, eqn, ins, outs[0])]
    if name.startswith("scatter"):
        return [_written_to(eqn, ins, outs[0])]
    if name in ("eq", "ne"):
        tags = [value.tag for value in ins if isinstance(value.tag, Tag)]
        return [Value([*outs[0].axes, tag.term]) for tag in tags]
    if name in _CUTTING:
        values = ins[:1] if name in ("slice", "split") else outs
        return [_cut(terms, value, (*ins, *outs)) for value in values]
    return _moved(terms, eqn, ins, outs, since)


def _cut(terms: Terms, value: Value, others: Sequence[Value]) -> Value:
    """A value along axes that are cut, or put together of parts.

    What a unit went with on such an axis may be another unit there on the other side.
    """
    apart = frozenset(
        number
        for number, axis in enumerate(value.axes)
        for other in others
        if other.axes and terms.size(other.axes[number]) != terms.size(axis)
    )
    return Value(value.axes, picks=value.picks, apart=apart)


def _product(
    terms: Terms,
    eqn: Any,
    ins: Sequence[Value],
    out: Value,
    made: tuple[int, index_order.PickSet],
) -> Value:
    """The product of the operands of a contraction, before the sum."""
    maps = [dict(index_order.axis_map(eqn, number)) for number in range(2)]
    axes = list(out.axes)
    for left, right in zip(*(contraction(eqn) or ()), strict=True):
        maps[0][left] = maps[1][right] = len(axes)
        axes.append(ins[1].axes[right])
    if eqn.primitive.name == "conv_general_dilated":
        for value, where in zip(ins, maps, strict=True):
            for axis in set(range(len(value.axes))) - where.keys():
                where[axis] = len(axes)
                axes.append(value.axes[axis])
        features = eqn.params["dimension_numbers"].out_spec[1]
        groups = eqn.params["feature_group_count"]
        sizes = [groups, terms.size(axes[features]) // groups]
        group, axes[features] = regroup(terms, [axes[features]], sizes)
        axes.append(group)
    return Value(axes, picks=index_order.carried(ins[:2], maps, len(axes), *made))


def _read_from(terms: Terms, eqn: Any, ins: Sequence[Value], out: Value) -> Value:
    """What a `gather` picks from, at every position of its output."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    operand = ins[0]
    picked = [
        operand.axes[axis]
        for axis in numbers.start_index_map
        if sizes[axis] != terms.size(operand.axes[axis])
    ]
    axes = [*out.axes, *picked]
    where = index_order.axis_map(eqn, 0)
    return Value(axes, picks=index_order.carried([operand], [where], len(axes)))


def _written_to(eqn: Any, ins: Sequence[Value], out: Value) -> Value:
    """What a `scatter` writes to, for every position it writes from."""
    mapped = eqn.params["dimension_numbers"].scatter_indices_batching_dims
    written = [a for i, a in enumerate(ins[1].axes[:-1]) if i not in mapped]
    return Value([*out.axes, *written])


def _moved(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], since: int
) -> list[Value]:
    """Where an axis comes out as another one, both."""
    before = {axis for value in ins for axis in value.axes}
    after = {axis for value in outs for axis in value.axes}

    def is_lost(axis: int) -> bool:
        return not any(terms.is_made_of(new, {axis}, since) for new in after)

    def is_new(axis: int) -> bool:
        return terms.size(axis) > 1 and not terms.is_made_of(axis, before, since)

    found = []
    for out in outs:
        if any(map(is_new, out.axes)):
            for number, value in enumerate(ins):
                where, axes = dict(index_order.axis_map(eqn, number)), list(out.axes)
                for axis, term in enumerate(value.axes):
                    if is_lost(term):
                        where[axis] = len(axes)
                        axes.append(term)
                known = index_order.carried([value], [where], len(axes))
                found.append(Value(axes, picks=known))
    return found
