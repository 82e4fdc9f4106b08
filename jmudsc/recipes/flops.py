"""Flops: what a program does in one run, counted on its equations.

Nothing is compiled. What a compiler makes of the equations may do less: it fuses them,
and does not keep what it can compute again.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.extend.core as jex

from jmudsc.derivation.program import open_jaxpr, Program, shape_of, variables_of
from jmudsc.derivation.rules.primitive import Bodies
from jmudsc.derivation.rules.table import primitive_of


@dataclass(frozen=True)
class Work:
    """What one run of some equations takes.

    Attributes:
        flops: operations of matrix products and convolutions, two for each product
            that is added up.
        moved: bytes that these read and write.
        grams: operations of the Gram matrices of what goes into each of them, and of
            that with what comes out.
        equations: how many there are, those of a loop counted once.
        endless: whether there is a loop whose number of steps is not known, taken as 1.
        unknown: the primitives whose cost is not known, taken as 0.
    """

    flops: int = 0
    moved: int = 0
    grams: int = 0
    equations: int = 0
    endless: bool = False
    unknown: frozenset[str] = frozenset()


def work_of(program: Program) -> Work:
    """Count what one run of a program takes.

    Args:
        program: the traced model.

    Returns:
        The work, for one batch of the size that was traced.
    """
    return _work(program.eqns)


def live_bytes(program: Program) -> int:
    """Return how many bytes of activations there are at once, at most.

    Every value lives from its equation to the last that reads it; leaves and constants
    are not counted, the batch is.

    Args:
        program: the traced model.
    """
    return _live(program.eqns, program.inputs, program.outvars)


def _work(eqns: Iterable[jex.JaxprEqn]) -> Work:
    parts = [_work_of_one(eqn) for eqn in eqns]
    return Work(
        sum(part.flops for part in parts),
        sum(part.moved for part in parts),
        sum(part.grams for part in parts),
        sum(part.equations for part in parts),
        any(part.endless for part in parts),
        frozenset().union(*(part.unknown for part in parts)),
    )


def _work_of_one(eqn: jex.JaxprEqn) -> Work:
    record = primitive_of(eqn)
    bodies = [_work(open_jaxpr(body).eqns) for body in _bodies(eqn)]
    if bodies:
        return _work_of_bodies(bodies, record.bodies(eqn) if record.bodies else None)
    if record.cost is None:
        return Work(equations=1, unknown=frozenset([record.name]))
    cost = record.cost(eqn)
    moved = sum(map(_bytes, (*eqn.invars, *eqn.outvars))) if cost.flops else 0
    return Work(cost.flops, moved, cost.grams, 1)


def _work_of_bodies(bodies: list[Work], runs: Bodies | None) -> Work:
    runs, unknown = runs or Bodies(), frozenset().union(*(b.unknown for b in bodies))
    if runs.is_choice:
        bodies = [max(bodies, key=lambda body: body.flops)]
    steps = 1 if runs.steps is None else runs.steps
    return Work(
        steps * sum(body.flops for body in bodies),
        steps * sum(body.moved for body in bodies),
        steps * sum(body.grams for body in bodies),
        1 + sum(body.equations for body in bodies),
        runs.steps is None or any(body.endless for body in bodies),
        unknown,
    )


def _bodies(eqn: jex.JaxprEqn) -> list[Any]:
    """Return the jaxprs that an equation runs."""
    values = [
        item
        for value in eqn.params.values()
        for item in (value if isinstance(value, tuple | list) else [value])
    ]
    return [x for x in values if hasattr(open_jaxpr(x), "eqns")]


def _live(
    eqns: Sequence[jex.JaxprEqn], inputs: Sequence[Any], outputs: Sequence[Any]
) -> int:
    last = {var: n for n, eqn in enumerate(eqns) for var in variables_of(eqn.invars)}
    last |= dict.fromkeys(variables_of(outputs), len(eqns))
    alive: dict[Any, int] = {var: _bytes(var) for var in inputs}
    peak = sum(alive.values())
    for number, eqn in enumerate(eqns):
        inner = [
            _live(body.eqns, (), body.outvars) for body in map(open_jaxpr, _bodies(eqn))
        ]
        alive |= {var: _bytes(var) for var in eqn.outvars if var in last}
        peak = max(peak, sum(alive.values()) + max(inner, default=0))
        for var in variables_of(eqn.invars):
            if last[var] == number:
                alive.pop(var, None)
    return peak


def _bytes(var: Any) -> int:
    dtype: Any = getattr(var.aval, "dtype", None)
    size = getattr(dtype, "itemsize", 8)
    return math.prod(shape_of(var)) * size
