"""Stepwise: a program evaluated one equation after another, stopped on the way.

What a layer should be depends on what the layers before it make of the data once they
have been changed. So a program stops before a layer, its leaves may be changed, and it
goes on with what they are then.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import PyTree

from jmudsc.derivation.program import Program, variables_of


def values_at(
    program: Program,
    stops: Sequence[tuple[Any, Any]],
    leaves: Mapping[str, Any],
    batch: PyTree,
) -> Iterator[jax.Array]:
    """Evaluate a program, stopping before some equations to yield a value of each.

    `leaves` may be changed while it stops. What is made of leaves alone is therefore
    computed where it is used, and again after every stop.

    Args:
        program: the traced model.
        stops: equations, in program order, and the value to yield before each.
        leaves: path -> array.
        batch: what the model is run on.

    Yields:
        The values.
    """
    path_of = {var: path for path, var in program.leaves.items()}
    made = {var: eqn for eqn in program.eqns for var in eqn.outvars}
    last = {id(var): eqn for eqn in program.eqns for var in eqn.invars}
    wanted = {id(eqn): var for eqn, var in stops}
    data = map(jnp.asarray, jax.tree.leaves(batch))
    values: dict[Any, Any] = dict(zip(program.inputs, data, strict=True))
    constant: dict[Any, Any] = {}

    def value(var: Any) -> Any:
        if isinstance(var, jex.Literal):
            return var.val
        if var in values:
            return values[var]
        if var in path_of:
            return leaves[path_of[var]]
        if var in program.consts:
            return program.consts[var]
        if var not in constant:
            eqn = made[var]
            constant.update(_evaluated(eqn, [value(v) for v in eqn.invars]))
        return constant[var]

    for eqn in program.eqns:
        if id(eqn) in wanted:
            yield values[wanted[id(eqn)]]
            constant.clear()
        inputs = variables_of(eqn.invars)
        if any(var in values for var in inputs):
            values |= _evaluated(eqn, [value(var) for var in eqn.invars])
            for var in inputs:
                if last[id(var)] is eqn:
                    values.pop(var, None)


def _evaluated(eqn: Any, ins: list[Any]) -> dict[Any, Any]:
    outs = eqn.primitive.bind(*ins, **eqn.params)
    outs = outs if eqn.primitive.multiple_results else [outs]
    return dict(zip(eqn.outvars, outs, strict=True))
