"""Evaluation mode: what a program does that a network in evaluation mode does not.

A network that is merged computes one output for each sample, by itself and the same
each time. Dropout, normalization by statistics of the batch and losses do not; each
shows in the program. All of it can be meant, so it is said and not refused.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.extend.core as jex

from jmudsc.derivation.program import (
    open_jaxpr,
    Program,
    scan_operands,
    shape_of,
    unread,
    variables_of,
)
from jmudsc.derivation.rules.primitive import Arithmetic
from jmudsc.derivation.rules.table import axis_map, primitive_of
from jmudsc.paths import plural

# What draws random numbers; the words of a key may be drawn from too.
_DRAWING = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")
_SCALING = (Arithmetic.PRODUCT, Arithmetic.QUOTIENT)

_log = logging.getLogger(__name__)


def warn_of_mode(where: str, program: Program) -> None:
    """Warn of all that a network in evaluation mode does not do.

    Args:
        where: the caller.
        program: the traced model.
    """
    for sentence in signs_of_training(program):
        _log.warning("%s: %s", where, sentence)


def signs_of_training(program: Program) -> list[str]:
    """Say what a program does that a network in evaluation mode does not.

    Args:
        program: the traced model.

    Returns:
        For each thing what was expected, what is there and what to do.
    """
    found = (_draws(program), _normalizes_the_batch(program), _loses_samples(program))
    return [sentence for sentence in found if sentence]


def unread_statistics(program: Program) -> list[str]:
    """Find the leaves in whose place a program takes statistics of the batch.

    Args:
        program: the traced model.

    Returns:
        The paths of leaves that no output of samples depends on and that have the shape
        of a mean or variance over samples by which activations are normalized, or of a
        stack of them.
    """
    shapes = _batch_statistics(program)
    if not shapes:
        return []
    outputs = [var for var in program.outvars if _may_run_over(program, var)]
    idle = unread(program, outputs or None)
    leaves = program.leaves
    return [p for p in program.paths if p in idle and _ends_in(leaves[p], shapes)]


def _draws(program: Program) -> str | None:
    count = sum(eqn.primitive.name in _DRAWING for eqn in _all(program.eqns))
    if not count:
        return None
    return (
        "apply_fn: expected a function that gives the same outputs each time, got one "
        f"that draws random numbers, in {plural(count, 'place')}, as dropout does in "
        "training. Call the model in evaluation mode, with dropout off "
        "(deterministic=True, say)."
    )


def _normalizes_the_batch(program: Program) -> str | None:
    idle = unread_statistics(program)
    if not idle:
        return None
    more = f" and {len(idle) - 2} more" if len(idle) > 2 else ""
    return (
        "apply_fn: expected running statistics to be read, got activations normalized "
        f"by statistics of the batch, as BatchNorm does in training, and not by "
        f"{', '.join(idle[:2])}{more}. Call the model in evaluation mode "
        "(use_running_average=True, say)."
    )


def _loses_samples(program: Program) -> str | None:
    outputs = program.outvars
    if not _counts(program) or any(_may_run_over(program, var) for var in outputs):
        return None
    shapes = ", ".join(sorted({str(list(shape_of(var))) for var in outputs}))
    sizes = " or ".join(str(n) for n in sorted(_leading(program)))
    return (
        f"apply_fn: expected outputs with an axis for the samples of a batch, {sizes} "
        f"here, got {plural(len(outputs), 'output')} of shape {shapes}, as a loss has. "
        "Return the outputs of the network, so that their order is kept."
    )


def _leading(program: Program) -> set[int]:
    """Return how many samples a batch has: the leading sizes of its leaves."""
    return {shape_of(var)[0] for var in program.inputs if shape_of(var)}


def _counts(program: Program) -> set[int]:
    """Return how many samples a batch may have, if they need not come first."""
    others = {size for var in program.inputs for size in shape_of(var)[:-1]}
    return _leading(program) | others


def _may_run_over(program: Program, var: Any) -> bool:
    """Whether a value may have an axis for samples."""
    return not _counts(program).isdisjoint(shape_of(var))


def _core(var: Any) -> tuple[int, ...]:
    return tuple(size for size in shape_of(var) if size > 1)


def _ends_in(leaf: Any, shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether a leaf has one of some shapes, for each of several layers maybe."""
    core = _core(leaf)
    return any(shape and core[-len(shape) :] == shape for shape in shapes)


def _all(eqns: Iterable[Any]) -> Iterable[Any]:
    """Yield equations and those of the programs inside them."""
    for eqn in eqns:
        yield eqn
        for body in jex.jaxprs_in_params(eqn.params):
            yield from _all(open_jaxpr(body).eqns)


@dataclass(frozen=True)
class _Samples:
    """Where samples are in a program.

    Attributes:
        along: value -> its axes that run over samples.
        pooled: values computed from a sum over samples, without an axis of samples.
        roots: those of them that come from a square root.
        found: the shapes of roots by which values of samples are scaled, without axes
            of size 1.
    """

    along: dict[Any, frozenset[int]]
    pooled: set[Any] = field(default_factory=set)
    roots: set[Any] = field(default_factory=set)
    found: set[tuple[int, ...]] = field(default_factory=set)


def _batch_statistics(program: Program) -> set[tuple[int, ...]]:
    """Return the shapes of statistics of the batch that scale activations."""
    first = {v: frozenset([0]) for v in program.inputs if shape_of(v)}
    seen = _Samples(dict(first))
    _look(program.eqns, seen)
    return seen.found


def _look(eqns: Iterable[Any], seen: _Samples) -> None:
    for eqn in eqns:
        if eqn.primitive.name == "scan":
            _look_inside(eqn, seen)
            continue
        ins = variables_of(eqn.invars)
        kept = _kept(eqn, seen.along)
        sums = _sums_samples(eqn, seen.along)
        computed = primitive_of(eqn).arithmetic
        pooled, roots = seen.pooled.intersection(ins), seen.roots.intersection(ins)
        if kept and roots and computed in _SCALING:
            seen.found.update(map(_core, roots))
        for out in eqn.outvars:
            seen.along[out] = kept
            if not kept and (sums or pooled):
                seen.pooled.add(out)
            if not kept and (roots or (pooled and computed is Arithmetic.ROOT)):
                seen.roots.add(out)


def _kept(eqn: Any, along: Mapping[Any, frozenset[int]]) -> frozenset[int]:
    """Return the axes of the outputs of an equation that run over samples."""
    return frozenset(
        after
        for number, var in enumerate(eqn.invars)
        for before, after in axis_map(eqn, number).items()
        if before in _of(along, var)
    )


def _sums_samples(eqn: Any, along: Mapping[Any, frozenset[int]]) -> bool:
    summed = eqn.params.get("axes", ()) if "reduce" in eqn.primitive.name else ()
    return any(not _of(along, var).isdisjoint(summed) for var in eqn.invars)


def _of(along: Mapping[Any, frozenset[int]], var: Any) -> frozenset[int]:
    is_variable = bool(variables_of([var]))
    return along.get(var, frozenset()) if is_variable else frozenset()


def _look_inside(eqn: Any, seen: _Samples) -> None:
    """Look inside a loop; what is scanned has one axis less there, the first."""
    body = open_jaxpr(eqn.params["jaxpr"])
    consts, carried = scan_operands(eqn)
    whole = consts + carried
    for number, (outer, inner) in enumerate(zip(eqn.invars, body.invars, strict=True)):
        seen.along[inner] = _moved(_of(seen.along, outer), -int(number >= whole))
    _look(body.eqns, seen)
    for number, (outer, inner) in enumerate(
        zip(eqn.outvars, body.outvars, strict=True)
    ):
        seen.along[outer] = _moved(_of(seen.along, inner), int(number >= carried))


def _moved(axes: frozenset[int], by: int) -> frozenset[int]:
    return frozenset(axis + by for axis in axes if axis + by >= 0)
