"""Activation statistics: the moments of all labels, gathered from batches.

Where the moments of all labels have no room in memory together, the labels are taken in
groups that have, with one pass over the batches for each. Every pass runs the same
program, so that the result is the same to the last bit.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import (
    batch_kind,
    check_iterable,
    checked,
    first_batch,
    no_batches,
)
from jmudsc.compiled import kept
from jmudsc.derivation.program import run, trace
from jmudsc.derivation.taps import find_taps, read_tap, Tap
from jmudsc.derivation.terms.values import Place
from jmudsc.lazy import is_lazy, to_device
from jmudsc.matching.moment_store import MomentStore
from jmudsc.matching.moments import (
    Centered,
    centered,
    merge_moments,
    merged_sums,
    Moments,
    real_samples,
    step_shares,
    Sums,
)
from jmudsc.matching.passes import bytes_of_moments, passes_within
from jmudsc.matching.products import blocks_of
from jmudsc.reordering.blocks import Block, blocks, places_of, units_last
from jmudsc.sharding import over_processes, to_host
from jmudsc.spec.axes import Units
from jmudsc.spec.check_variables import check_covers, check_models
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn

# Label -> the units of one model.
_Units = Mapping[str, Centered]

# Bytes of units that may be kept while the models are read from disk in turn.
HELD = 2**30


def collect(
    spec: PermutationSpec,
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    batches: Iterable[PyTree],
    *,
    budget: int | None = None,
) -> dict[str, Moments]:
    """Gather the activation statistics of all labels and models.

    Every batch goes once through every model; batches may differ in size. Activations
    are read at the taps of each label (see `find_taps`) and accumulated in float32.
    Models on disk are read one at a time: all units of one, over as many batches as fit
    into `HELD` bytes with those of the others, are kept while the next one is. Where
    there are several processes each may read batches of its own: what they found
    is put together at the end. Arrays that are spread over devices stay where they are.

    With a budget that the moments of all labels have no room in, there is one pass over
    the batches for every group of labels that has. The co-moments are then on disk, in
    a file without a name in the folder for temporary files, and are read one at a time
    when they are used. The result is the same to the last bit.

    Args:
        spec: the permutation spec.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        models: the variables of each model, lazy or not.
        batches: what `apply_fn` takes, one by one; with a budget a re-iterable.
        budget: bytes that moments may take at once, those of one batch on top of those
            of all before it; a label that has no room by itself takes what it needs.
            None for one pass.

    Returns:
        Per label the moments of its stacked units; a label that no activation has is
        left out.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch, or `models` no list.
        ValueError: if there are no batches, or no samples in one, an activation is not
            finite, the spec does not fit the models, or batches that can be read only
            once do not fit the budget.
        OSError: if there is no room on disk for what has none in memory.
    """
    check_iterable("collect", batches)
    check_models("collect", models)
    for model in models:
        check_covers("collect", spec, paths.flatten(model))
    read = _Reading(spec, apply_fn, models[0])
    groups = _passes(read, batches, len(models), budget)
    if len(groups) < 2:
        return _one_pass(read, models, batches)
    store = MomentStore()
    return {
        name: store.put(moments)
        for group in groups
        for name, moments in _one_pass(
            replace(read, only=frozenset(group)), models, batches
        ).items()
    }


def _passes(
    read: "_Reading", batches: Iterable[PyTree], models: int, budget: int | None
) -> list[list[str]]:
    """Return the labels of every pass; of no more than one pass perhaps too many."""
    sizes = {n: bytes_of_moments(read.spec, n, models) for n in read.spec.labels}
    groups = passes_within(sizes, budget)
    if len(groups) < 2:
        return groups
    if isinstance(batches, Iterator):
        raise ValueError(
            "collect: batches: expected an iterable that can be read several times, "
            f"since the moments have no room in a budget of {budget} bytes, got a "
            f"{type(batches).__name__}, which can be read only once. Pass a list, or "
            "a larger budget."
        )
    known = read.shapes(first_batch("collect", batches))
    return passes_within({n: sizes[n] for n in sizes if n in known}, budget)


def _one_pass(
    read: "_Reading", models: Sequence[PyTree], batches: Iterable[PyTree]
) -> dict[str, Moments]:
    """Gather the moments of some labels."""
    total: dict[str, Moments] = {}
    number = 0
    batches = checked("collect", batches)
    one_by_one = ([batch] for batch in batches)
    lazy = is_lazy(models)
    for group in _groups(read, batches, len(models)) if lazy else one_by_one:
        every = [_units_of(read, model, group) for model in models]
        for units in zip(*every, strict=True):
            total, bad = _with_samples(total, units)
            _check_finite(bad, number, len(models))
            number += 1
    if not number:
        raise no_batches("collect")
    return _of_all_processes(total)


@dataclass(frozen=True)
class _Reading:
    """Reads the units of labels; compiled once for every shape of batch.

    Attributes:
        spec: the permutation spec.
        apply_fn: `(variables, batch) -> outputs`.
        model: the variables of one model, or their shapes.
        only: the labels that are of interest; None for all. The program is the same, so
            that its bits are.
        compiled: kind of batch -> the program.
    """

    spec: PermutationSpec
    apply_fn: ApplyFn
    model: PyTree
    only: Set[str] | None = None
    compiled: dict[Any, Callable[[list, list], _Units]] = field(default_factory=dict)

    def units(self, leaves: list, batch: PyTree) -> _Units:
        """Return the units of the labels of interest on a batch."""
        return self._wanted(self._reader(batch)(leaves, jax.tree.leaves(batch)))

    def shapes(self, batch: PyTree) -> Mapping[str, Any]:
        """Return the shapes of what `units` does."""
        leaves, data = jax.tree.leaves(self.model), jax.tree.leaves(batch)
        return self._wanted(jax.eval_shape(self._reader(batch), leaves, data))

    def _wanted(self, units: Mapping[str, Any]) -> dict[str, Any]:
        return {n: x for n, x in units.items() if self.only is None or n in self.only}

    def _reader(self, batch: PyTree) -> Callable[[list, list], _Units]:
        kind = batch_kind(batch)
        if kind not in self.compiled:
            key = "units", repr(vars(self.spec)), batch_kind(self.model), kind
            self.compiled[kind] = kept(self.apply_fn, key, lambda: self._made(batch))
        return self.compiled[kind]

    def _made(self, batch: PyTree) -> Callable[[list, list], _Units]:
        return _reader(self.spec, self.apply_fn, self.model, batch)


def _units_of(read: _Reading, model: PyTree, batches: Sequence[PyTree]) -> list:
    leaves = jax.tree.leaves(to_device(model))
    units = [read.units(leaves, batch) for batch in batches]
    # The next model is read when this one is needed no more.
    return jax.block_until_ready(units) if is_lazy(model) else units


def _groups(
    read: _Reading, batches: Iterable[PyTree], models: int
) -> Iterator[list[PyTree]]:
    """Yield as many batches at once as may go through one model after the other."""
    group: list[PyTree] = []
    held = 0
    for batch in batches:
        units = read.shapes(batch)
        size = models * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(units))
        if group and held + size > HELD:
            yield group
            group, held = [], 0
        group.append(batch)
        held += size
    if group:
        yield group


def _of_all_processes(total: dict[str, Moments]) -> dict[str, Moments]:
    """Put together what every process gathered from batches of its own."""
    parts = {name: (m.count, m.mean, m.comoment) for name, m in total.items()}
    gathered = [
        {name: Moments(int(count), *rest) for name, (count, *rest) in each.items()}
        for each in over_processes(parts, parts)
    ]
    return {
        name: functools.reduce(merge_moments, [each[name] for each in gathered])
        for name in total
    }


def _with_samples(
    total: Mapping[str, Moments], units: Sequence[_Units]
) -> tuple[dict[str, Moments], dict[str, jax.Array]]:
    """Add samples to moments, whose memory is used again; `{}` to begin with.

    Returns:
        The moments, and which units are not finite.
    """
    counts = {name: int(x.shape[0]) for name, (_, x) in units[0].items()}
    before = {n: total[n].count if total else 0 for n in counts}
    shares = {n: step_shares(before[n], counts[n]) for n in counts}
    models = [dict(model) for model in units]
    parts = {n: (m.mean, m.comoment) for n, m in total.items()} or _nothing(models)
    added, bad = _added(parts, models, shares)
    return {n: Moments(before[n] + counts[n], *added[n]) for n in counts}, bad


def _nothing(units: Sequence[_Units]) -> dict[str, Sums]:
    shapes = jax.eval_shape(_sums_of, units)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def _reader(
    spec: PermutationSpec, apply_fn: ApplyFn, model: PyTree, batch: PyTree
) -> Callable[[list, list], _Units]:
    """Compile a function that reads the units of every label for one batch shape."""
    program = trace(apply_fn, model, batch)
    taps = {name: where for name, where in find_taps(program, spec).items() if where}
    parents = {name: label.parents for name, label in spec.labels.items()}
    wanted = dict.fromkeys(
        p for where in taps.values() for t in where for p in t.places
    )

    stay = {name for name, label in spec.labels.items() if label.fixed}

    def read(tap: Tap, values: dict[Place, jax.Array]) -> jax.Array:
        value, *indices = (values[place] for place in tap.places)
        return read_tap(tap, value, indices)

    @jax.jit
    def units_of(leaves: list, data: list) -> dict[str, Centered]:
        values = dict(zip(wanted, run(program, [*leaves, *data], wanted), strict=True))
        units = {}
        for name, where in taps.items():
            runs = [
                units_last(_averaged(part, block, (axis, *lead), stay), axis, lead)
                for tap in where
                for part, block in blocks(read(tap, values), tap.axes)
                for axis, lead in places_of(block, name, parents)
            ]
            if runs:
                samples = real_samples(jnp.concatenate(runs))
                apart, _ = spec.compared_shape(name)
                units[name] = centered(samples.reshape(len(samples), *apart, -1))
        return units

    return units_of


def _averaged(
    part: jax.Array, block: Block, read: Sequence[int], stay: Set[str]
) -> jax.Array:
    """Average over units of other labels, which are in another order in every model."""
    others = tuple(
        axis
        for axis, atom in enumerate(block.atoms)
        if isinstance(atom, Units) and axis not in read and atom.label not in stay
    )
    wide = jnp.promote_types(part.dtype, jnp.float32)
    return part.astype(wide).mean(axis=others, keepdims=True)


def _sums_of(units: Sequence[_Units]) -> dict[str, Sums]:
    parts = {}
    for name in units[0]:
        means, samples = zip(*(model[name] for model in units), strict=True)
        mean = jnp.concatenate(means, axis=-1)
        parts[name] = mean, blocks_of(samples)
    return parts


@functools.partial(jax.jit, donate_argnums=0)
def _added(
    total: dict[str, Sums], units: list[_Units], shares: dict[str, tuple[Any, Any]]
) -> tuple[dict[str, Sums], dict[str, jax.Array]]:
    """Add samples to sums; return the sums, and which units are not finite."""
    more = _sums_of(units)
    merged = {
        name: merged_sums(total[name], more[name], shares[name]) for name in shares
    }
    return merged, {name: _non_finite(c) for name, (_, c) in merged.items()}


def _check_finite(bad: Mapping[str, jax.Array], number: int, models: int) -> None:
    problems = []
    for name, flags in bad.items():
        each = np.moveaxis(to_host(flags).reshape(*flags.shape[:-1], models, -1), -2, 0)
        for model, flagged in enumerate(each):
            if flagged.any():
                problems.append(
                    f"{name}: {flagged.sum()} of {flagged.size} units of model {model} "
                    "are NaN or infinite"
                )
    if problems:
        raise ValueError(
            f"collect: expected finite activations, got others in batch {number}:\n"
            f"{paths.listed(problems)}\nCheck the range of the input."
        )


def _non_finite(comoment: Any) -> jax.Array:
    return ~jnp.isfinite(jnp.diagonal(comoment, axis1=-2, axis2=-1))
