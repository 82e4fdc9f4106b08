"""Running statistics: which leaves of BatchNorm they are, told by their use."""

from collections.abc import Iterable, Set
from dataclasses import dataclass, field, replace
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
        eqn: the equation that takes the activations in: the subtraction, or the
            product where the terms are scaled one by one; None if there is none.
        activations: the variable of the activations.
        mean_var: that of the running mean.
    """

    variance: str
    mean: str | None = None
    eqn: Any = None
    activations: Any = None
    mean_var: Any = None


def running_statistics(program: Program, data: Set[Any]) -> tuple[Statistics, ...]:
    """Find the leaves that normalize activations: `(x - mean) / sqrt(var + eps)`.

    Also where the product is taken first: `x * scale + (shift - mean * scale)`, with
    `scale = gamma / sqrt(var + eps)`, as Keras does.

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
class _Product:
    """A leaf times what was made of a running variance, and sums with leaves.

    Attributes:
        leaf: the path of the leaf.
        var: its variable.
        scale: the variable that it is multiplied by.
        is_negative: whether it is taken off.
    """

    leaf: str
    var: Any
    scale: Any
    is_negative: bool


@dataclass(frozen=True)
class _Seen:
    """What is known so far.

    Attributes:
        leaf_of: values that are a leaf, untouched but for a constant -> that leaf.
        scales: values made of a running variance -> that leaf.
        centered: activations minus a leaf -> all but the variance.
        negated: values that are minus a leaf -> the value that is the leaf.
        products: leaves times a scale, by their values.
        scaled: activations times a scale -> the scale, the product, the activations.
        alone: the running variances.
        found: the pairs, once for each subtraction.
    """

    leaf_of: dict[Any, str]
    scales: dict[Any, str] = field(default_factory=dict)
    centered: dict[Any, Statistics] = field(default_factory=dict)
    negated: dict[Any, Any] = field(default_factory=dict)
    products: dict[Any, _Product] = field(default_factory=dict)
    scaled: dict[Any, tuple[Any, Any, Any]] = field(default_factory=dict)
    alone: dict[str, None] = field(default_factory=dict)
    found: dict[tuple[str, str, int], Statistics] = field(default_factory=dict)


def _look(eqns: Iterable[Any], seen: _Seen, data: Set[Any]) -> None:
    for eqn in eqns:
        record, out = primitive_of(eqn), eqn.outvars[0]
        computed, is_untouched = record.arithmetic, record.entries in _UNTOUCHED
        ins = [var for var in eqn.invars if not isinstance(var, jex.Literal)]
        known = [var for var in ins if var in seen.leaf_of]
        _follow_products(eqn, computed, ins, seen, data)
        if eqn.primitive.name == "scan":  # the one loop that runs over layers
            _look_inside(eqn, seen, data)
        elif computed is Arithmetic.ROOT and known:
            seen.scales[out] = seen.leaf_of[ins[0]]
            seen.alone[seen.scales[out]] = None
        elif (is_untouched or computed in _STABILIZE) and known and len(ins) == 1:
            seen.leaf_of[out] = seen.leaf_of[ins[0]]
        elif computed is Arithmetic.DIFFERENCE and _is_centering(ins, seen, data):
            seen.centered[out] = Statistics("", seen.leaf_of[ins[-1]], eqn, *ins)
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


def _follow_products(
    eqn: Any, computed: Arithmetic | None, ins: list[Any], seen: _Seen, data: Set[Any]
) -> None:
    """Follow `x * scale` and `mean * scale` to where one is taken off the other."""
    out = eqn.outvars[0]
    if eqn.primitive.name == "neg" and ins:
        if ins[0] in seen.leaf_of:
            seen.negated[out] = ins[0]
        elif (product := seen.products.get(ins[0])) is not None:
            seen.products[out] = replace(product, is_negative=not product.is_negative)
    elif len(ins) != 2:
        return
    elif computed is Arithmetic.PRODUCT:
        _multiply(eqn, ins, seen, data)
    elif computed in (Arithmetic.SUM, Arithmetic.DIFFERENCE):
        _take_off(out, ins, computed is Arithmetic.DIFFERENCE, seen, data)


def _multiply(eqn: Any, ins: list[Any], seen: _Seen, data: Set[Any]) -> None:
    for scale, other in (ins, ins[::-1]):
        leaf = seen.negated.get(other, other)
        if scale not in seen.scales:
            continue
        if other in data:
            seen.scaled[eqn.outvars[0]] = scale, eqn, other
        elif leaf in seen.leaf_of:
            is_negative = other in seen.negated
            product = _Product(seen.leaf_of[leaf], leaf, scale, is_negative)
            seen.products[eqn.outvars[0]] = product


def _take_off(
    out: Any, ins: list[Any], is_difference: bool, seen: _Seen, data: Set[Any]
) -> None:
    """Pair a mean with a variance, or go on with a product that a shift is added to."""
    for first, second in (ins, ins[::-1]):
        product = seen.products.get(second)
        if product is None or (is_difference and second is ins[0]):
            continue
        if is_difference:
            product = replace(product, is_negative=not product.is_negative)
        scale, eqn, activations = seen.scaled.get(first, (None, None, None))
        if first not in data:
            seen.products[out] = product
        elif scale is product.scale and product.is_negative:
            variance = seen.scales[scale]
            record = Statistics(variance, product.leaf, eqn, activations, product.var)
            seen.found[variance, product.leaf, id(eqn)] = record


def _pair(out: Any, ins: list[Any], seen: _Seen, data: Set[Any]) -> None:
    """Pair means with variances where what was centered is scaled."""
    means = {seen.centered[v].mean: seen.centered[v] for v in ins if v in seen.centered}
    variances = [seen.scales[var] for var in ins if var in seen.scales]
    for variance in variances:
        for mean, record in means.items():
            assert mean is not None
            known = replace(record, variance=variance)
            seen.found[variance, mean, id(record.eqn)] = known
    if not variances and len(means) == len(data & set(ins)) == 1:
        (seen.centered[out],) = means.values()  # scaled by another leaf
