"""Ordering: primitives that sort, or find the largest and where they are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jmudsc.derivation.rules.common import (
    all_but,
    BY_POSITION,
    by_position,
    drop,
    negligible,
    shape_of,
    tie,
    unknown,
)
from jmudsc.derivation.rules.positions import can_hold, forget, forget_all
from jmudsc.derivation.rules.primitive import (
    AxisTerms,
    Known,
    Outcome,
    Primitive,
    Ranking,
    Rule,
)
from jmudsc.derivation.terms.axis_terms import Term, Terms
from jmudsc.derivation.terms.values import Tag

IN_ORDER = "is in order of size"


def iota(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """The numbers 0, 1, 2, ... along a new axis."""
    axes = [terms.leaf(size) for size in eqn.params["shape"]]
    terms.pin(axes[eqn.params["dimension"]], BY_POSITION.format("iota"))
    return [axes]


def iota_positions(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Sequence[Known]
) -> Outcome:
    """As long as they are followed as positions, the axis may be permuted."""
    along = eqn.params["dimension"]
    if not can_hold(eqn.params["dtype"], eqn.params["shape"][along]):
        return rule(terms, eqn, ins), [None]
    axes = [terms.leaf(size) for size in eqn.params["shape"]]
    return [axes], [Tag(axes[along])]


def argreduce(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Drop the axis; where on it the largest is are positions."""
    if len(eqn.params["axes"]) != 1:
        return unknown(terms, eqn, ins)
    _pin_if_equal(terms, eqn, ins[0][eqn.params["axes"][0]])
    return [drop(ins[0], eqn.params["axes"])]


def argreduce_positions(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Sequence[Known]
) -> Outcome:
    """The outputs are positions along the axis that was dropped."""
    axes = eqn.params["axes"]
    if len(axes) != 1:
        return forget_all(rule, terms, eqn, ins, tags)
    forget(terms, tags[0], eqn.primitive.name)
    best = Tag(ins[0][axes[0]])
    if can_hold(eqn.params["index_dtype"], terms.size(best.term)):
        return rule(terms, eqn, ins), [best]
    forget(terms, best, "a type that cannot hold them")
    return rule(terms, eqn, ins), [None]


def top_k(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """The largest come out in order of size."""
    along = _top_k_axis(eqn)
    _pin_if_equal(terms, eqn, ins[0][along])
    out = list(ins[0])
    out[along] = terms.fixed(shape_of(eqn.outvars[0])[along], IN_ORDER)
    return [out, out]


def top_k_positions(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Sequence[Known]
) -> Outcome:
    """The second output are positions along the axis."""
    forget(terms, tags[0], eqn.primitive.name)
    return rule(terms, eqn, ins), [None, Tag(ins[0][_top_k_axis(eqn)])]


def approx_top_k(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Which of the largest are found depends on where they are: the axis is fixed."""
    (axes,), along = ins, eqn.params["reduction_dimension"]
    out = list(axes)
    out[along] = by_position(terms, axes[along], shape_of(eqn.outvars[0])[along], eqn)
    return [out, out]


def sort(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """What is sorted by the same keys is in one order, before and after."""
    along, keys = eqn.params["dimension"], eqn.params["num_keys"]
    same = [
        tie(terms, size, [axes[i] for axes in ins])
        for i, size in enumerate(shape_of(eqn.outvars[0]))
    ]
    if keys < len(ins):
        _pin_if_equal(terms, eqn, same[along])
    out = list(same)
    out[along] = terms.fixed(terms.size(same[along]), IN_ORDER)
    return [out] * len(ins)


def sort_positions(
    rule: Rule, terms: Terms, eqn: Any, ins: list[AxisTerms], tags: Sequence[Known]
) -> Outcome:
    """Positions that are sorted along, not by, stay positions."""
    keys = eqn.params["num_keys"]
    for tag in tags[:keys]:
        forget(terms, tag, "sort")
    return rule(terms, eqn, ins), [None] * keys + list(tags[keys:])


def _pin_if_equal(terms: Terms, eqn: Any, along: Term) -> None:
    """Of equal entries the first leads, and numbers other than floats often are."""
    if not jnp.issubdtype(eqn.invars[0].aval.dtype, jnp.floating):
        terms.pin(along, BY_POSITION.format(f"{eqn.primitive.name} among equal ones"))


def _top_k_axis(eqn: Any) -> int:
    return eqn.params.get("axis", len(shape_of(eqn.invars[0])) - 1)


def _beside(axis_of: Callable[[Any], int]) -> Callable[[Any, int], Mapping[int, int]]:
    return lambda eqn, number: all_but(shape_of(eqn.invars[number]), axis_of(eqn))


def _approx_top_k_axis(eqn: Any) -> int:
    return eqn.params["reduction_dimension"] % len(shape_of(eqn.invars[0]))


def _sort_axis(eqn: Any) -> int:
    return eqn.params["dimension"]


def _finding(name: str) -> Primitive:
    return Primitive(
        name,
        rule=argreduce,
        positions=argreduce_positions,
        ranks=_ranks_of_all,
        cost=negligible,
    )


def _ranks_of_all(eqn: Any) -> Ranking:
    return Ranking(keys=(0,), axis=int(eqn.params["axes"][0]), outputs=(0,))


def _ranks_of_top_k(eqn: Any) -> Ranking:
    return Ranking(keys=(0,), axis=_top_k_axis(eqn), outputs=(1,))


def _ranks_of_sort(eqn: Any) -> Ranking:
    keys, count = eqn.params["num_keys"], len(eqn.invars)
    return Ranking(tuple(range(keys)), _sort_axis(eqn), tuple(range(keys, count)))


PRIMITIVES = (
    Primitive(
        "approx_top_k",
        rule=approx_top_k,
        axis_map=_beside(_approx_top_k_axis),
        cost=negligible,
    ),
    Primitive("iota", rule=iota, positions=iota_positions, cost=negligible),
    _finding("argmax"),
    _finding("argmin"),
    Primitive(
        "sort",
        rule=sort,
        positions=sort_positions,
        axis_map=_beside(_sort_axis),
        ranks=_ranks_of_sort,
        cost=negligible,
    ),
    Primitive(
        "top_k",
        rule=top_k,
        positions=top_k_positions,
        axis_map=_beside(_top_k_axis),
        ranks=_ranks_of_top_k,
        cost=negligible,
    ),
)
