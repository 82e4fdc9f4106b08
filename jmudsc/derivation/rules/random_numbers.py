"""Random numbers: primitives that draw them, and that make their keys.

What is drawn differs from position to position; each of several keys draws by itself.
"""

from typing import Any

from jmudsc.derivation.rules.common import (
    BY_POSITION,
    negligible,
    pin_all,
    same_axes,
    shape_of,
)
from jmudsc.derivation.rules.elementwise import elementwise
from jmudsc.derivation.rules.primitive import AxisTerms, Primitive
from jmudsc.derivation.terms.axis_terms import Terms


def drawn(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Axes of keys come first; whatever is made of each key is fixed."""
    (keys,), shape = ins, shape_of(eqn.outvars[0])
    reason = BY_POSITION.format(eqn.primitive.name)
    return [keys + [terms.fixed(n, reason) for n in shape[len(keys) :]]]


def random_wrap(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """The last axes hold the words of one key each."""
    (words,), rank = ins, len(shape_of(eqn.outvars[0]))
    pin_all(terms, words[rank:], BY_POSITION.format(eqn.primitive.name))
    return [words[:rank]]


def _drawing(name: str) -> Primitive:
    return Primitive(name, rule=drawn, axis_map=same_axes, cost=negligible)


PRIMITIVES = (
    _drawing("random_bits"),
    _drawing("random_split"),
    _drawing("random_unwrap"),
    Primitive("random_wrap", rule=random_wrap, cost=negligible),
    elementwise("random_clone"),
    elementwise("random_fold_in"),
    elementwise("random_seed"),
    elementwise("threefry2x32"),
)
