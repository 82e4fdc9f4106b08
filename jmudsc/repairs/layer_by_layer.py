"""Layer by layer: run networks side by side and change one of them on the way.

What a layer of the merged network should be depends on what the layers before it make
of the data once they have been changed. So all networks are run over all batches
together, from layer to layer; at every layer the merged one is given new leaves before
the layer is computed. No activation is computed twice, and what lies between two layers
is compiled once for all stretches of the network that are alike.
"""

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import batch_kind, check_iterable, checked, no_batches
from jmudsc.derivation.program import trace
from jmudsc.repairs.find_layers import find_layers
from jmudsc.repairs.layers import is_led, Layer, Layers, Linear, Norm, Shared, uses_of
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.operands import value_of
from jmudsc.repairs.stepwise import Values, Way, way_through
from jmudsc.repairs.targets import arrays, Leaves, Targets, targets_of
from jmudsc.repairs.visits import Visit, visits_of
from jmudsc.spec.check_variables import check_same


@dataclass(frozen=True)
class Seen:
    """One batch at one layer.

    Attributes:
        batch: the number of the batch.
        use: the linear layer or norm, as the program for batches of this shape has it;
            of a kernel that is used more than once one of its uses.
        number: which of the uses it is.
        merged: what goes into it in the merged network.
        parents: what goes into it in each parent.
    """

    batch: int
    use: Linear | Norm
    number: int
    merged: jax.Array
    parents: Sequence[jax.Array]


Change = Callable[[Layer, Iterable[Seen], Leaves, Targets], tuple[Leaves, str]]


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
        change: `(layer, seen, leaves, targets) -> (new leaves, what was done)`, called
            at every layer with what goes into it, a `Seen` for every batch, and for
            every use where it has more than one: then to be gone through only once.
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
    runs = _runs(where, merger, merged, batches)
    first = runs[0].layers
    notes = {p: n for p, n in first.skipped.items() if within is None or p in within}
    for visit in visits_of(runs[0].stops, [*map(is_led, first.steps)]):
        layer = first.steps[visit.step]
        for run in runs:
            run.go_to(visit, leaves, targets)
        if within is not None and any(path not in within for path in paths_of(layer)):
            continue
        seen = _seen(runs, visit, leaves, targets)
        changed, done = change(layer, seen, leaves, targets)
        leaves.update(changed)  # which the networks on their way read from
        notes |= dict.fromkeys(paths_of(layer), done)
    return paths.unflatten(merged, leaves), notes


def paths_of(layer: Layer) -> list[str]:
    """Return the paths of the leaves of a layer."""
    if isinstance(layer, Norm):
        return [layer.mean.path, layer.variance.path]
    if isinstance(layer, Shared):
        return list(dict.fromkeys(p for use in layer.uses for p in paths_of(use)))
    return [*layer.kernel.paths, *(layer.bias.paths if layer.bias else ())]


def _seen(
    runs: Sequence["_Run"], visit: Visit, leaves: Leaves, targets: Targets
) -> Iterable[Seen]:
    """Return what goes into a layer, batch by batch.

    With several uses the networks run ahead to the last of them, and no further use is
    held than the one that is looked at.
    """
    uses = (
        seen
        for batch, run in enumerate(runs)
        for seen in run.ahead(batch, visit, leaves, targets)
    )
    return uses if len(runs[0].stops[visit.step]) > 1 else list(uses)


def operands_of(layer: Linear, leaves: Leaves) -> tuple[ArrayLike, ArrayLike]:
    """Return the kernel and the bias of a linear layer, in float32.

    Args:
        layer: the linear layer.
        leaves: those of the network.

    Returns:
        The operand of the contraction, and what is added to its output.
    """
    kernel = value_of(layer.kernel, leaves)
    if layer.bias is None:
        return kernel, np.zeros((1,) * len(layer.makes), np.float32)
    return kernel, value_of(layer.bias, leaves)


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


@dataclass
class _Run:
    """All networks on their way through one batch.

    Attributes:
        layers: those of the model, for batches of this shape.
        way: the way through it that stops at each of them.
        stops: for each layer the numbers of the stops that are its uses.
        values: per network what is alive where it is, the merged one last.
        place: the number of the stop where they are; -1 before the first.
        mark: a stop to go back to, and what is alive there.
    """

    layers: Layers
    way: Way
    stops: Sequence[Sequence[int]]
    values: list[Values]
    place: int = -1
    mark: tuple[int, list[Values]] = (-1, [])

    def go_to(self, visit: Visit, leaves: Leaves, targets: Targets) -> None:
        """Go to where a layer comes first, on or back."""
        stop = self.stops[visit.step][0]
        if visit.goes_back:
            self.place, self.values = self.mark
        for number in range(self.place + 1, stop + 1):
            self.values = self._after(number, self.values, leaves, targets)
        self.place = stop
        if visit.is_start:
            self.mark = stop, self.values

    def ahead(
        self, batch: int, visit: Visit, leaves: Leaves, targets: Targets
    ) -> Iterator[Seen]:
        """Look at all uses of a layer, while the networks stay at the first."""
        values, stops = self.values, self.stops[visit.step]
        for number in range(self.place, stops[-1] + 1):
            if number > self.place:
                values = self._after(number, values, leaves, targets)
            if number in stops:
                use = self.layers.stops[number]
                if visit.is_again and isinstance(use, Linear):
                    use = replace(use, is_led=False)
                *parents, merged = (here[use.operand] for here in values)
                yield Seen(batch, use, stops.index(number), merged, parents)

    def _after(
        self, number: int, values: list[Values], leaves: Leaves, targets: Targets
    ) -> list[Values]:
        return [
            self.way.after(number, here, own)
            for here, own in zip(values, [*targets.leaves, leaves], strict=True)
        ]


def _runs(
    where: str, merger: Merger, variables: PyTree, batches: Iterable[PyTree]
) -> list[_Run]:
    programs: dict[Any, tuple[Layers, Way, list[list[int]]]] = {}
    runs = []
    for batch in checked(where, batches):
        kind = batch_kind(batch)
        if kind not in programs:
            program = trace(merger.apply_fn, variables, batch)
            layers = find_layers(program, merger.spec)
            stops = [(stop.eqn, stop.operand) for stop in layers.stops]
            way = way_through(layers.program, stops, layers.data)
            number = {id(stop): n for n, stop in enumerate(layers.stops)}
            places = [[number[id(u)] for u in uses_of(step)] for step in layers.steps]
            programs[kind] = layers, way, places
        networks = len(merger.parents) + 1
        way = programs[kind][1]
        runs.append(_Run(*programs[kind], [way.start(batch)] * networks))
    if not runs:
        raise no_batches(where)
    found = {tuple(tuple(paths_of(s)) for s in run.layers.steps) for run in runs}
    if len(found) > 1:
        raise ValueError(
            f"{where}: expected apply_fn to have the same layers for all batches, got "
            "others for some. Pass batches of one shape."
        )
    return runs
