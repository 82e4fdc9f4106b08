"""Index order: axes that are in the order of one unit of a label, and which that is.

After `kernel[chosen]`, with one kernel per expert, hidden units are in the order of the
expert that was chosen, which differs from input to input. Two such axes may meet (be
multiplied, summed over together) if both are in the order of experts picked by the same
index value along the same axes. A pick says so of one axis of a value; it is carried
through operations that keep axes apart, and forgotten by all others, which is sound: a
label is nested in another only if it goes with it in every value.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jmudsc.derivation.rules.common import shape_of
from jmudsc.derivation.rules.primitive import Lookup
from jmudsc.derivation.rules.table import axis_map, primitive_of
from jmudsc.derivation.terms.values import (
    carried,
    Number,
    Pick,
    Picked,
    Picks,
    Place,
    Value,
)
from jmudsc.derivation.value_numbering import Numbers


def picked(
    eqn: Any, ins: Sequence[Value], numbers: Numbers, places: Mapping[Number, Place]
) -> Picked:
    """Return what an equation picks by an index, one position of an axis at a time.

    Args:
        eqn: a jaxpr equation.
        ins: its operands.
        numbers: the numbers of values.
        places: where values can be read, by number.

    Returns:
        Which operand it picks from, and the picks.
    """
    lookups = primitive_of(eqn).lookups
    found = lookups(eqn) if lookups else ()
    if not found:
        return Picked()
    picks = []
    for lookup in found:
        term = ins[lookup.source].axes[lookup.axis]
        index = _index(lookup, ins, numbers)
        place = None if lookup.is_run else places.get(index)
        picks.append(Pick(term, index, lookup.along, place))
    return Picked(found[0].source, frozenset(picks))


def after(eqn: Any, ins: Sequence[Value], new: Picked) -> list[Picks]:
    """Return the picks of the outputs of an equation.

    Args:
        eqn: a jaxpr equation.
        ins: its operands.
        new: what it picks itself.

    Returns:
        The picks of each output; empty if there are none.
    """
    if not new.picks and not any(value.picks for value in ins):
        return [()] * len(eqn.outvars)
    maps = [axis_map(eqn, number) for number in range(len(ins))]
    return [carried(ins, maps, len(shape_of(out)), new) for out in eqn.outvars]


def _index(lookup: Lookup, ins: Sequence[Value], numbers: Numbers) -> Number:
    """Return the number of an index value."""
    number = ins[lookup.index].number
    if lookup.is_run:
        return numbers.runs(number)
    return numbers.columns(number, lookup.columns)[lookup.column]
