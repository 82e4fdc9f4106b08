"""Attention: the fused kernel that `jax.nn.dot_product_attention` calls on GPUs.

Elsewhere it is made of contractions and a softmax, of which each has its own record.
"""

import math
from collections.abc import Sequence
from typing import Any

from jmudsc.derivation.rules.common import BY_POSITION, pin_all, shape_of, unknown
from jmudsc.derivation.rules.primitive import AxisTerms, Cost, Primitive
from jmudsc.derivation.terms.axis_terms import Terms
from jmudsc.derivation.terms.values import Picked, Value

_MASKS = {"NO_MASK", "PADDING", "CAUSAL", "PADDING_CAUSAL"}
_BNTH = 1  # the layout with heads before positions; 0 has them after


def attention(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Queries and keys share channels; heads of queries are groups, one a key head.

    Positions are free unless they are masked by their number, or left out by length.
    """
    if not _is_plain(eqn):
        return unknown(terms, eqn, ins)
    (batch, heads, time, channels) = _ordered(eqn, ins[0])
    (*keys, key_heads, key_time, key_channels) = _ordered(eqn, ins[1])
    (*values, value_heads, value_time, out) = _ordered(eqn, ins[2])
    terms.unify(channels, key_channels)
    terms.unify(key_heads, value_heads)
    terms.unify(key_time, value_time)
    groups = terms.leaf(terms.size(heads) // terms.size(key_heads))
    terms.unify(heads, terms.product((key_heads, groups)))
    lengths = [axis for axes in ins[4:6] for axis in axes if terms.size(axis)]
    for axis in (*keys, *values, *lengths):
        terms.unify(batch, axis)
    if len(ins[3]) > 1:
        pairs = zip(ins[3], (batch, heads, time, key_time), strict=True)
        for axis, other in pairs:  # a bias is broadcast along axes of size 1
            if terms.size(axis) == terms.size(other):
                terms.unify(axis, other)
    if _is_by_position(eqn):
        pin_all(terms, (time, key_time), BY_POSITION.format(eqn.primitive.name))
    outs = [list(_ordered(eqn, [batch, heads, time, out])), [batch, heads, time]]
    return outs[: len(eqn.outvars)]


def _is_plain(eqn: Any) -> bool:
    """Whether sequences are neither packed nor in pages, and nothing is drawn."""
    packed = [var for var in eqn.invars[6:] if math.prod(shape_of(var))]
    is_drawn = eqn.params["dropout_rate"] > 0
    return not packed and not is_drawn and eqn.params["mask_type"].name in _MASKS


def _is_by_position(eqn: Any) -> bool:
    params = eqn.params
    is_masked = params["mask_type"].name != "NO_MASK"
    return is_masked or params["sliding_window_length"] is not None


def _ordered(eqn: Any, axes: Sequence[Any]) -> Sequence[Any]:
    """Bring axes into the order (batch, heads, positions, channels), or back."""
    batch, first, second, channels = axes
    if eqn.params["layout"] == _BNTH:
        return batch, first, second, channels
    return batch, second, first, channels


def _met(
    terms: Terms, eqn: Any, ins: Sequence[Value], outs: Sequence[Value], picked: Picked
) -> list[Value]:
    """Queries meet keys at every pair of positions, and the weights of those values."""
    query, key, value = (_ordered(eqn, operand.axes) for operand in ins[:3])
    pairs = [*query[:3], key[2]]
    return [Value([*pairs, query[3]]), Value([*pairs, value[3]])]


def _cost(eqn: Any) -> Cost:
    """Two products of matrices; masked entries are counted as well."""
    query, key, value = (_ordered(eqn, shape_of(var)) for var in eqn.invars[:3])
    return Cost(2 * math.prod(query[:3]) * key[2] * (query[3] + value[3]))


PRIMITIVES = (
    Primitive(
        "dot_product_attention_fwd_wrapper", rule=attention, meets=_met, cost=_cost
    ),
)
