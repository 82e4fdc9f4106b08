"""Which leaves are BatchNorm running statistics: told by their use, not their name."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

import jax.extend.core as jex

from jmudsc.trace import Program

_CARRY = set(
    "broadcast_in_dim convert_element_type copy expand_dims reshape squeeze "
    "stop_gradient transpose".split()
)
_STABILISE = {"add", "max", "clamp"}


@dataclass(frozen=True, eq=False)
class Statistics:
    """The leaves of `(x - mean) / sqrt(variance + epsilon)`.

    Attributes:
        variance: the path of the running variance.
        mean: the path of the running mean; None if there is none.
        eqn: the subtraction; None if there is none.
    """

    variance: str
    mean: str | None = None
    eqn: Any = None


def running_statistics(program: Program, data: Set[Any]) -> tuple[Statistics, ...]:
    """Find the leaves that normalise activations: `(x - mean) / sqrt(var + eps)`.

    A running variance is a leaf that goes into a square root untouched but for a
    constant; a running mean is a leaf subtracted from activations that are then scaled
    by what was made of a running variance.

    Args:
        program: the traced model.
        data: its values that depend on the batch.

    Returns:
        Which mean goes with which variance, in program order; a variance without a
        mean once.
    """
    leaf_of = {var: path for path, var in program.leaves.items()}
    scales: dict[Any, str] = {}  # values made of a running variance -> that leaf
    centred: dict[Any, tuple[str, Any]] = {}  # activations minus a leaf -> leaf, eqn
    alone: dict[str, None] = {}
    found: dict[tuple[str, str, int], Statistics] = {}
    for eqn in program.eqns:
        name, out = eqn.primitive.name, eqn.outvars[0]
        ins = [var for var in eqn.invars if not isinstance(var, jex.Literal)]
        known = [var for var in ins if var in leaf_of]
        if name in ("rsqrt", "sqrt") and known:
            scales[out] = leaf_of[ins[0]]
            alone[scales[out]] = None
        elif name in _CARRY | _STABILISE and known and len(ins) == 1:
            leaf_of[out] = leaf_of[ins[0]]
        elif name == "sub" and known and ins[-1] in leaf_of and ins[0] in data:
            centred[out] = leaf_of[ins[-1]], eqn
        elif scales.keys() & set(ins) and out not in data:
            scales[out] = next(scales[var] for var in ins if var in scales)
        elif name in {"mul", "div"} | _CARRY:
            means = {centred[var][0]: centred[var] for var in ins if var in centred}
            variances = [scales[var] for var in ins if var in scales]
            for variance in variances:
                for mean, where in means.values():
                    key = variance, mean, id(where)
                    found[key] = Statistics(variance, mean, where)
            if not variances and len(means) == len(data & set(ins)) == 1:
                (centred[out],) = means.values()  # scaled by another leaf
    paired = {record.variance for record in found.values()}
    rest = [Statistics(variance) for variance in alone if variance not in paired]
    return (*found.values(), *rest)
