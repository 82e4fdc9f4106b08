"""Streams: networks run side by side, stopped at every kernel to be given a new one.

What a layer should be depends on what the layers before it make of the data once they
have been changed. So batches go through the networks one equation after another, and
what is changed while they are stopped is what they go on with.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc.derivation.program import Program
from jmudsc.finetunes.kernels import indexed, Kernel, kernels_of
from jmudsc.repairs.contractions import columns, unit_axes


@dataclass(frozen=True, eq=False)
class Layer:
    """A kernel of a program, outside loops, and the bias that is added to its output.

    Attributes:
        kernel: the use of the leaf.
        index: the places of its entries, (matrices, in, out).
        bias: the path of the bias; None if there is none.
        bias_index: the places of its entries, (matrices, 1, out).
    """

    kernel: Kernel
    index: np.ndarray
    bias: str | None = None
    bias_index: np.ndarray | None = None

    @property
    def path(self) -> str:
        """The path of the kernel."""
        return self.kernel.view.path


def layers_of(program: Program) -> list[Layer]:
    """Return the layers of a program in the order in which they are computed.

    Left out are kernels inside loops, and those that are used more than once.
    """
    kernels = kernels_of(program)
    order = {id(eqn): number for number, eqn in enumerate(program.eqns)}
    found = []
    for path, uses in kernels.uses.items():
        index = indexed(uses) if len(uses) == 1 else None
        is_plain = path not in kernels.tables and id(uses[0].eqn) in order
        if index is not None and is_plain:
            found.append(_with_bias(program, uses[0], index, kernels.views))
    return sorted(found, key=lambda layer: order[id(layer.kernel.eqn)])


def inputs_at(
    program: Program,
    layers: Sequence[Layer],
    leaves: Mapping[str, Any],
    batch: PyTree,
) -> Iterator[jax.Array]:
    """Evaluate a program, stopping at every layer to yield what goes into it.

    `leaves` may be changed while it stops.

    Args:
        program: the traced model.
        layers: where to stop, in order.
        leaves: path -> array.
        batch: what the model is run on.
    """
    stops = {id(layer.kernel.eqn): layer.kernel.operand.var for layer in layers}
    path_of = {var: path for path, var in program.leaves.items()}
    made = {var: eqn for eqn in program.eqns for var in eqn.outvars}
    last = {var: eqn for eqn in program.eqns for var in _variables(eqn)}
    data = map(jnp.asarray, jax.tree.leaves(batch))
    values: dict[Any, Any] = dict(zip(program.inputs, data, strict=True))

    def value(var: Any) -> Any:
        if isinstance(var, jex.Literal):
            return var.val
        if var in values:
            return values[var]
        if var in path_of:
            return leaves[path_of[var]]
        if var in program.consts:
            return program.consts[var]
        return _evaluated(made[var], [value(v) for v in made[var].invars])[var]

    for eqn in program.eqns:
        if id(eqn) in stops:
            yield values[stops[id(eqn)]]
        inputs = _variables(eqn)
        if any(var in values for var in inputs):
            values |= _evaluated(eqn, [value(var) for var in eqn.invars])
            for var in inputs:
                if last[var] is eqn:
                    values.pop(var, None)


def _with_bias(
    program: Program, kernel: Kernel, index: np.ndarray, views: Mapping[Any, Any]
) -> Layer:
    """Add the bias to a layer: a leaf added to its output, one entry a unit."""
    out = kernel.eqn.outvars[0]
    users = [eqn for eqn in program.eqns if out in _variables(eqn)]
    if len(users) != 1 or users[0].primitive.name not in ("add", "add_any"):
        return Layer(kernel, index)
    other = users[0].invars[users[0].invars[0] is out]
    if isinstance(other, jex.Literal) or other not in views:
        return Layer(kernel, index)
    places, units = views[other].index(), unit_axes(kernel.form, out.aval.ndim)
    for axis in range(places.ndim):
        if axis not in units:
            places = places.take([0], axis)
    by_unit = np.asarray(columns(kernel.form, jnp.asarray(places)))
    is_whole = by_unit.size == index.shape[0] * index.shape[2] == np.unique(places).size
    if not is_whole:
        return Layer(kernel, index)
    return Layer(kernel, index, views[other].path, by_unit)


def _variables(eqn: Any) -> list[Any]:
    return [var for var in eqn.invars if not isinstance(var, jex.Literal)]


def _evaluated(eqn: Any, ins: list[Any]) -> dict[Any, Any]:
    outs = eqn.primitive.bind(*ins, **eqn.params)
    outs = outs if eqn.primitive.multiple_results else [outs]
    return dict(zip(eqn.outvars, outs, strict=True))
