"""Layer by layer: run networks side by side and change one of them on the way.

What a layer of the merged network should be depends on what the layers before it make
of the data once they have been changed. So all networks are run over all batches
together, one equation after another; at every layer the merged one is given new leaves
before the layer is computed. Equations are evaluated one at a time: no value is
computed twice, nothing is compiled that layers of one shape do not share.
"""

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jmudsc import paths
from jmudsc.batches import batch_kind, check_iterable, checked, no_batches
from jmudsc.derivation.program import Program, trace, variables_of
from jmudsc.repairs.contractions import contract
from jmudsc.repairs.find_layers import find_layers, Layers, Linear, Norm
from jmudsc.repairs.leaf_entries import read
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.targets import arrays, Leaves, Targets, targets_of
from jmudsc.spec.check_variables import check_same


@dataclass(frozen=True)
class Seen:
    """One batch at one layer.

    Attributes:
        layer: the layer, as the program for batches of this shape has it.
        merged: what goes into it in the merged network.
        parents: what goes into it in each parent.
    """

    layer: Linear | Norm
    merged: jax.Array
    parents: Sequence[jax.Array]


Change = Callable[[Sequence[Seen], Leaves, Targets], tuple[Leaves, str]]


def change_layers(
    where: str,
    change: Change,
    merger: Merger,
    merged: PyTree,
    batches: Iterable[PyTree],
    within: Container[str] | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Give every layer of a merged network new leaves, in program order.

    Args:
        where: the caller, named in errors.
        change: `(seen, leaves, targets) -> (new leaves, what was done)`, called at
            every layer with what goes into it, one `Seen` per batch.
        merger: how the network was merged.
        merged: the variables to change.
        batches: what `apply_fn` takes, one by one; read once. What is alive in between
            two layers is held for all of them.
        within: the paths of the leaves that may change: layers that have others stay as
            they are. None for all.

    Returns:
        The changed variables, and for every kernel, bias and running statistic of a
        layer what was done with it, or why nothing was.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch.
        ValueError: if the parents, the spec, the assignment or the merged variables do
            not fit together, there are no batches, or the model has other layers for
            some of them.
    """
    check_iterable(where, batches)
    check_same(where, [*merger.parents, merged])
    targets = targets_of(where, merger)
    leaves = arrays(merged)
    runs = _runs(where, merger, merged, [*targets.leaves, leaves], batches)
    first = runs[0].layers
    notes = {p: n for p, n in first.skipped.items() if within is None or p in within}
    for number, layer in enumerate(first.steps):
        seen = []
        for run in runs:
            *olds, new = [next(network) for network in run.networks]
            seen.append(Seen(run.layers.steps[number], new, olds))
        if within is not None and any(p not in within for p in paths_of(layer)):
            continue
        changed, done = change(seen, leaves, targets)
        leaves.update(changed)  # which the networks on their way read from
        notes |= dict.fromkeys(paths_of(layer), done)
    return paths.unflatten(merged, leaves), notes


def paths_of(layer: Linear | Norm) -> list[str]:
    """Return the paths of the leaves of a layer."""
    if isinstance(layer, Norm):
        return [layer.mean.path, layer.variance.path]
    return [layer.kernel.path, *([layer.bias.path] if layer.bias else [])]


def outputs(layer: Linear, inputs: ArrayLike, leaves: Leaves) -> Float[Array, "..."]:
    """Compute what a linear layer makes of some inputs, bias included, in float32.

    Args:
        layer: the linear layer.
        inputs: what goes into it.
        leaves: those of the network.

    Returns:
        An array with the axes `layer.makes`.
    """
    kernel = read(leaves[layer.kernel.path], layer.kernel.index)
    if layer.bias is None:
        bias = np.zeros((1,) * len(layer.makes), np.float32)
    else:
        bias = read(leaves[layer.bias.path], layer.bias.index)
    return contract(layer.form, inputs, kernel, bias)


def log_skipped(log: logging.Logger, where: str, notes: Mapping[str, str]) -> None:
    """Warn of the leaves that could not be changed.

    Args:
        log: where to.
        where: the caller.
        notes: from `change_layers`.
    """
    lines = [f"{path} {why}" for path, why in notes.items() if why.startswith("is ")]
    if lines:
        stay = paths.plural(
            len(lines), "leaf stays as it is", "leaves stay as they are"
        )
        log.warning("%s: %s:\n%s", where, stay, paths.listed(lines))


@dataclass(frozen=True)
class _Run:
    """All networks on their way through one batch.

    Attributes:
        layers: those of the model, for batches of this shape.
        networks: per network what goes into each layer, one after another.
    """

    layers: Layers
    networks: Sequence[Iterator[jax.Array]]


def _runs(
    where: str,
    merger: Merger,
    variables: PyTree,
    networks: Sequence[Leaves],
    batches: Iterable[PyTree],
) -> list[_Run]:
    programs: dict[Any, tuple[Program, Layers]] = {}
    runs = []
    for batch in checked(where, batches):
        kind = batch_kind(batch)
        if kind not in programs:
            program = trace(merger.apply_fn, variables, batch)
            programs[kind] = program, find_layers(program, merger.spec)
        program, layers = programs[kind]
        ways = [_inputs_of_layers(program, layers, n, batch) for n in networks]
        runs.append(_Run(layers, ways))
    if not runs:
        raise no_batches(where)
    found = {tuple(tuple(paths_of(s)) for s in run.layers.steps) for run in runs}
    if len(found) > 1:
        raise ValueError(
            f"{where}: expected apply_fn to have the same layers for all batches, got "
            "others for some. Pass batches of one shape."
        )
    return runs


def _inputs_of_layers(
    program: Program, layers: Layers, leaves: Leaves, batch: PyTree
) -> Iterator[jax.Array]:
    """Evaluate a program, stopping at every layer to yield what goes into it.

    `leaves` may be changed while it stops. What is made of leaves alone is therefore
    computed where it is used, and again after every stop.
    """
    path_of = {var: path for path, var in program.leaves.items()}
    made = {var: eqn for eqn in program.eqns for var in eqn.outvars}
    last = {id(var): eqn for eqn in program.eqns for var in eqn.invars}
    stops = {id(layer.eqn): layer.operand for layer in layers.steps}
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
        if id(eqn) in stops:
            yield values[stops[id(eqn)]]
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
