"""Streams: what goes into every kernel of a network, which may be given a new one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc.derivation.program import Program, variables_of
from jmudsc.finetunes.kernels import indexed, Kernel, kernels_of
from jmudsc.repairs.contractions import columns, unit_axes
from jmudsc.repairs.stepwise import values_at


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
    stops = [(layer.kernel.eqn, layer.kernel.operand.var) for layer in layers]
    return values_at(program, stops, leaves, batch)


def _with_bias(
    program: Program, kernel: Kernel, index: np.ndarray, views: Mapping[Any, Any]
) -> Layer:
    """Add the bias to a layer: a leaf added to its output, one entry a unit."""
    out = kernel.eqn.outvars[0]
    users = [eqn for eqn in program.eqns if out in variables_of(eqn.invars)]
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
