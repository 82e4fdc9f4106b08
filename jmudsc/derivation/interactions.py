"""Interactions: the axes that an equation brings together on no value of the program.

A contraction multiplies its operands unit by unit before it sums, a gather reads for
every position of its output all those it picks from, a reversal or a running sum moves
what is at one position to another. Such an equation is seen as one more value, with all
of these axes on it: units that go with one another must do so there as well.
"""

from collections.abc import Sequence
from typing import Any

from jmudsc.derivation.rules.table import axis_map, primitive_of
from jmudsc.derivation.terms.axis_terms import Term, Terms
from jmudsc.derivation.terms.origins import is_made_of
from jmudsc.derivation.terms.values import carried, Picked, Value


def interactions(
    terms: Terms,
    eqn: Any,
    ins: Sequence[Value],
    outs: Sequence[Value],
    picked: Picked,
    since: int,
) -> list[Value]:
    """Return what an equation brings together.

    Args:
        terms: the arena.
        eqn: a jaxpr equation without a jaxpr inside.
        ins: its operands.
        outs: its outputs.
        picked: what it picks by index values.
        since: number of terms there were before its rule was applied.

    Returns:
        Values with the axes that meet; none if they meet on an operand or output.
    """
    meets = primitive_of(eqn).meets
    met = None if meets is None else meets(terms, eqn, ins, outs, picked)
    return _moved(terms, eqn, ins, outs, since) if met is None else met


def _moved(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], since: int
) -> list[Value]:
    """Where an axis comes out as another one, both."""
    before = {axis for value in ins for axis in value.axes}
    after = {axis for value in outs for axis in value.axes}

    def is_lost(axis: Term) -> bool:
        return not any(is_made_of(terms, new, {axis}, since) for new in after)

    def is_new(axis: Term) -> bool:
        return terms.size(axis) > 1 and not is_made_of(terms, axis, before, since)

    met = []
    for out in outs:
        if any(map(is_new, out.axes)):
            for number, value in enumerate(ins):
                where, axes = dict(axis_map(eqn, number)), list(out.axes)
                for axis, term in enumerate(value.axes):
                    if is_lost(term):
                        where[axis] = len(axes)
                        axes.append(term)
                known = carried([value], [where], len(axes))
                met.append(Value(axes, picks=known))
    return met
