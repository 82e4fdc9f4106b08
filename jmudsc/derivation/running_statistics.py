"""Running statistics: which leaves of BatchNorm they are, told by their use."""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from typing import Any

import jax.extend.core as jex

from jmudsc.derivation.program import open_jaxpr, Program
from jmudsc.derivation.rules.primitive import Arithmetic, Moves
from jmudsc.derivation.rules.table import primitive_of

# A leaf is still told as it is after these.
_UNTOUCHED = {Moves.KEPT, Moves.LAID_OUT}
_STABILIZE = {Arithmetic.SUM, Arithmetic.LOWER_BOUND}
_SCALE = {Arithmetic.PRODUCT, Arithmetic.QUOTIENT}


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
    """Find the leaves that normalize activations: `(x - mean) / sqrt(var + eps)`.

    A running variance is a leaf that goes into a square root untouched but for a
    constant; a running mean is a leaf subtracted from activations that are then scaled
    by what was made of a running variance. Layers that a `scan` runs over have theirs
    in one leaf, which is found too.

    Args:
        program: the traced model.
        data: its values that depend on the batch.

    Returns:
        Which mean goes with which variance, in program order; a variance without a
        mean once.
    """
    seen = _Seen({var: path for path, var in program.leaves.items()})
    _look(program.eqns, seen, data)
    paired = {record.variance for record in seen.found.values()}
    rest = [Statistics(variance) for variance in seen.alone if variance not in paired]
    return (*seen.found.values(), *rest)


@dataclass(frozen=True)
class _Seen:
    """What is known so far.

    Attributes:
        leaf_of: values that are a leaf, untouched but for a constant -> that leaf.
        scales: values made of a running variance -> that leaf.
        centered: activations minus a leaf -> that leaf, and the subtraction.
        alone: the running variances.
        found: the pairs, once for each subtraction.
    """

    leaf_of: dict[Any, str]
    scales: dict[Any, str] = field(default_factory=dict)
    centered: dict[Any, tuple[str, Any]] = field(default_factory=dict)
    alone: dict[str, None] = field(default_factory=dict)
    found: dict[tuple[str, str, int], Statistics] = field(default_factory=dict)


def _look(eqns: Iterable[Any], seen: _Seen, data: Set[Any]) -> None:
    for eqn in eqns:
        record, out = primitive_of(eqn), eqn.outvars[0]
        computed, is_untouched = record.arithmetic, record.entries in _UNTOUCHED
        ins = [var for var in eqn.invars if not isinstance(var, jex.Literal)]
        known = [var for var in ins if var in seen.leaf_of]
        if eqn.primitive.name == "scan":  # the one loop that runs over layers
            _look_inside(eqn, seen, data)
        elif computed is Arithmetic.ROOT and known:
            seen.scales[out] = seen.leaf_of[ins[0]]
            seen.alone[seen.scales[out]] = None
        elif (is_untouched or computed in _STABILIZE) and known and len(ins) == 1:
            seen.leaf_of[out] = seen.leaf_of[ins[0]]
        elif computed is Arithmetic.DIFFERENCE and _is_centering(ins, seen, data):
            seen.centered[out] = seen.leaf_of[ins[-1]], eqn
        elif seen.scales.keys() & set(ins) and out not in data:
            seen.scales[out] = next(seen.scales[v] for v in ins if v in seen.scales)
        elif computed in _SCALE or is_untouched:
            _pair(out, ins, seen, data)


def _is_centering(ins: list[Any], seen: _Seen, data: Set[Any]) -> bool:
    """Whether a leaf is subtracted from activations."""
    return bool(ins) and ins[-1] in seen.leaf_of and ins[0] in data


def _look_inside(eqn: Any, seen: _Seen, data: Set[Any]) -> None:
    """Look inside a loop over layers: a step sees the leaf's part of its layer."""
    body = open_jaxpr(eqn.params["jaxpr"])
    for outer, inner in zip(eqn.invars, body.invars, strict=True):
        if not isinstance(outer, jex.Literal) and outer in seen.leaf_of:
            seen.leaf_of[inner] = seen.leaf_of[outer]
    _look(body.eqns, seen, data)


def _pair(out: Any, ins: list[Any], seen: _Seen, data: Set[Any]) -> None:
    """Pair means with variances where what was centered is scaled."""
    means = {seen.centered[v][0]: seen.centered[v] for v in ins if v in seen.centered}
    variances = [seen.scales[var] for var in ins if var in seen.scales]
    for variance in variances:
        for mean, where in means.values():
            record = Statistics(variance, mean, where)
            seen.found[variance, mean, id(where)] = record
    if not variances and len(means) == len(data & set(ins)) == 1:
        (seen.centered[out],) = means.values()  # scaled by another leaf
