"""Work: what a program does in one run, counted on its equations.

Nothing is compiled. What a compiler makes of the equations may do less: it fuses them,
and does not keep what it can compute again.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.extend.core as jex

from jmudsc.derivation.program import open_jaxpr, Program, shape_of, variables_of


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
    """

    flops: int = 0
    moved: int = 0
    grams: int = 0
    equations: int = 0
    endless: bool = False


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
    )


def _work_of_one(eqn: jex.JaxprEqn) -> Work:
    bodies = [_work(open_jaxpr(body).eqns) for body in _bodies(eqn)]
    if not bodies:
        summed = _summed(eqn)
        if not summed:
            return Work(equations=1)
        size = math.prod(shape_of(eqn.outvars[0]))
        rows = size // _features(eqn)
        moved = sum(map(_bytes, (*eqn.invars, *eqn.outvars)))
        grams = 2 * rows * summed * (summed + _features(eqn))
        return Work(2 * size * summed, moved, grams, 1)
    steps = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    if eqn.primitive.name == "cond":
        bodies = [max(bodies, key=lambda body: body.flops)]
    return Work(
        steps * sum(body.flops for body in bodies),
        steps * sum(body.moved for body in bodies),
        steps * sum(body.grams for body in bodies),
        1 + sum(body.equations for body in bodies),
        eqn.primitive.name == "while" or any(body.endless for body in bodies),
    )


def _bodies(eqn: jex.JaxprEqn) -> list[Any]:
    """Return the jaxprs that an equation runs."""
    values = [
        item
        for value in eqn.params.values()
        for item in (value if isinstance(value, tuple | list) else [value])
    ]
    return [x for x in values if hasattr(open_jaxpr(x), "eqns")]


def _summed(eqn: jex.JaxprEqn) -> int:
    """Return how many products each output of an equation sums up; 0 if none."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (left, _), _ = params["dimension_numbers"]
        shape = shape_of(eqn.invars[0])
        return math.prod(shape[axis] for axis in left)
    if name == "conv_general_dilated":
        kernel = shape_of(eqn.invars[1])
        return math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    if name.startswith("ragged_dot"):
        return shape_of(eqn.invars[0])[-1]
    return 0


def _features(eqn: jex.JaxprEqn) -> int:
    """Return how many units come out of a product or convolution."""
    if eqn.primitive.name == "conv_general_dilated":
        axis = eqn.params["dimension_numbers"].rhs_spec[0]
        return shape_of(eqn.invars[1])[axis]
    return (shape_of(eqn.outvars[0]) or (1,))[-1] or 1


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
