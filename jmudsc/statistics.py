"""Which leaves are BatchNorm running statistics: told by their use, not their name."""

from collections.abc import Set
from typing import Any

import jax.extend.core as jex

from jmudsc.trace import Program

_CARRY = set(
    "broadcast_in_dim convert_element_type copy expand_dims reshape squeeze "
    "stop_gradient transpose".split()
)
_STABILISE = {"add", "max", "clamp"}


def running_statistics(program: Program, data: Set[Any]) -> frozenset[str]:
    """Find the leaves that normalise activations: `(x - mean) / sqrt(var + eps)`.

    A running variance is a leaf that goes into a square root untouched but for a
    constant; a running mean is a leaf subtracted from activations that are then scaled
    by what was made of a running variance.

    Args:
        program: the traced model.
        data: its values that depend on the batch.

    Returns:
        The paths of those leaves.
    """
    leaf_of = {var: path for path, var in program.leaves.items()}
    scales: set[Any] = set()  # values made of a running variance
    centred: dict[Any, str] = {}  # activations minus a leaf -> that leaf
    found = set()
    for eqn in program.eqns:
        name, out = eqn.primitive.name, eqn.outvars[0]
        ins = [var for var in eqn.invars if not isinstance(var, jex.Literal)]
        known = [var for var in ins if var in leaf_of]
        if name in ("rsqrt", "sqrt") and known:
            found.add(leaf_of[ins[0]])
            scales.add(out)
        elif name in _CARRY | _STABILISE and known and len(ins) == 1:
            leaf_of[out] = leaf_of[ins[0]]
        elif name == "sub" and known and ins[-1] in leaf_of and ins[0] in data:
            centred[out] = leaf_of[ins[-1]]
        elif scales.intersection(ins) and out not in data:
            scales.add(out)
        elif name in {"mul", "div"} | _CARRY:
            means = {centred[var] for var in ins if var in centred}
            if scales.intersection(ins):
                found |= means
            elif len(means) == len(data & set(ins)) == 1:  # scaled by another leaf
                (centred[out],) = means
    return frozenset(found)
