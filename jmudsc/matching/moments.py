"""Moments: exact streamed means and co-moments of the units of every label."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmudsc import paths
from jmudsc.batches import batch_kind, check_iterable, checked, no_batches
from jmudsc.compiled import kept
from jmudsc.derivation.program import run, trace
from jmudsc.derivation.taps import find_taps, read_tap, Tap
from jmudsc.derivation.terms.values import Place
from jmudsc.lazy import is_lazy, to_device
from jmudsc.matching.products import blocks_of, stacked_products
from jmudsc.reordering.blocks import (
    Block,
    blocks,
    library_of,
    places_of,
    units_last,
    Values,
)
from jmudsc.sharding import over_processes, to_host
from jmudsc.spec.axes import Units
from jmudsc.spec.check_variables import check_covers, check_models
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn

# The mean of each unit of one model, and the samples without it.
Centered = tuple[
    Float[Array | np.ndarray, "*apart units"],
    Float[Array | np.ndarray, "samples *apart units"],
]
# Label -> that.
_Units = Mapping[str, Centered]
# The mean and the co-moment of `Moments`.
_Sums = tuple[
    Float[Array | np.ndarray, "*apart stacked"],
    Float[Array | np.ndarray, "*apart stacked stacked"],
]

# Bytes of units that may be kept while the models are read from disk in turn.
HELD = 2**30


@dataclass(frozen=True)
class Moments:
    """Mean and co-moment of the stacked units of all models, over some samples.

    The units are stacked model by model; those of a nested label run over the
    units of its outer labels, outermost first, and then over its own. Outer labels that
    stay in place, such as a stack of layers, are axes that lead: what is nested in
    different units of theirs is not compared (see `PermutationSpec.compared_shape`).

    Attributes:
        count: number of samples.
        mean: mean of each unit.
        comoment: sum over samples of the outer product of differences from the mean.
    """

    count: int
    mean: Float[Array | np.ndarray, "*apart stacked"]
    comoment: Float[Array | np.ndarray, "*apart stacked stacked"]


def collect(
    spec: PermutationSpec,
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    batches: Iterable[PyTree],
) -> dict[str, Moments]:
    """Gather the activation statistics of all labels and models in one pass.

    Every batch goes once through every model; batches may differ in size. Activations
    are read at the taps of each label (see `find_taps`) and accumulated in float32.
    Models on disk are read one at a time: all units of one, over as many batches as fit
    into `HELD` bytes with those of the others, are kept while the next one is. Where
    there are several processes each may read batches of its own: what they found
    is put together at the end. Arrays that are spread over devices stay where they are.

    Args:
        spec: the permutation spec.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        models: the variables of each model, lazy or not.
        batches: what `apply_fn` takes, one by one; read once.

    Returns:
        Per label the moments of its stacked units; a label that no activation has is
        left out.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch, or `models` no list.
        ValueError: if there are no batches, or no samples in one, an activation is not
            finite, or the spec does not fit the models.
    """
    check_iterable("collect", batches)
    check_models("collect", models)
    for model in models:
        check_covers("collect", spec, paths.flatten(model))
    read = _Reading(spec, apply_fn, models[0])
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
    """Reads the units of every label; compiled once for every shape of batch."""

    spec: PermutationSpec
    apply_fn: ApplyFn
    model: PyTree
    compiled: dict[Any, Callable[[list, list], _Units]] = field(default_factory=dict)

    def reader(self, batch: PyTree) -> Callable[[list, list], _Units]:
        kind = batch_kind(batch)
        if kind not in self.compiled:
            key = "units", repr(vars(self.spec)), batch_kind(self.model), kind
            self.compiled[kind] = kept(self.apply_fn, key, lambda: self.made(batch))
        return self.compiled[kind]

    def made(self, batch: PyTree) -> Callable[[list, list], _Units]:
        return _reader(self.spec, self.apply_fn, self.model, batch)


def _units_of(read: _Reading, model: PyTree, batches: Sequence[PyTree]) -> list:
    leaves = jax.tree.leaves(to_device(model))
    units = [read.reader(batch)(leaves, jax.tree.leaves(batch)) for batch in batches]
    # The next model is read when this one is needed no more.
    return jax.block_until_ready(units) if is_lazy(model) else units


def _groups(
    read: _Reading, batches: Iterable[PyTree], models: int
) -> Iterator[list[PyTree]]:
    """Yield as many batches at once as may go through one model after the other."""
    group: list[PyTree] = []
    held = 0
    for batch in batches:
        leaves, data = jax.tree.leaves(read.model), jax.tree.leaves(batch)
        units = jax.eval_shape(read.reader(batch), leaves, data)
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


def moments_of_centered(units: Sequence[Centered], large: bool = False) -> Moments:
    """Compute the moments of the units of all models from centered samples.

    Args:
        units: for every model what `centered` returns.
        large: whether to take products on the device (see `products`).

    Returns:
        The moments of the stacked units; on the host unless they are large.
    """
    means, samples = zip(*units, strict=True)
    mean = np.concatenate([np.asarray(x) for x in means], axis=-1)
    comoment = stacked_products([np.asarray(x) for x in samples], large)
    return Moments(len(samples[0]), mean, comoment)


def _with_samples(
    total: Mapping[str, Moments], units: Sequence[_Units]
) -> tuple[dict[str, Moments], dict[str, jax.Array]]:
    """Add samples to moments, whose memory is used again; `{}` to begin with.

    Returns:
        The moments, and which units are not finite.
    """
    counts = {name: int(x.shape[0]) for name, (_, x) in units[0].items()}
    before = {n: total[n].count if total else 0 for n in counts}
    shares = {n: _shares(before[n], counts[n]) for n in counts}
    models = [dict(model) for model in units]
    parts = {n: (m.mean, m.comoment) for n, m in total.items()} or _nothing(models)
    added, bad = _added(parts, models, shares)
    return {n: Moments(before[n] + counts[n], *added[n]) for n in counts}, bad


def _shares(before: int, more: int) -> tuple[np.float32, np.float32]:
    """Return how much the mean and the co-moment move for each step of the mean."""
    count = before + more
    return np.float32(more / count), np.float32(before * more / count)


def _nothing(units: Sequence[_Units]) -> dict[str, _Sums]:
    shapes = jax.eval_shape(_sums_of, units)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def centered(
    samples: Float[Array | np.ndarray, "samples *apart units"],
) -> Centered:
    """Take the mean from samples, of numpy or of JAX.

    Args:
        samples: of the units of one model.

    Returns:
        The mean of each unit, and the samples without it.
    """
    if isinstance(samples, np.ndarray):  # where sums are not taken in pairs
        mean = samples.mean(axis=0, dtype=np.float64).astype(samples.dtype)
    else:
        mean = samples.mean(axis=0)
    return mean, samples - mean[None]


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the moments of two sets of samples.

    The pairwise update of Chan, Golub and LeVeque (Updating formulae and a pairwise
    algorithm for computing sample variances, 1979, eq. 2.1): exact however large the
    mean is beside the standard deviation.

    Args:
        a: moments of the units of a label.
        b: those of the same units over other samples.

    Returns:
        The moments over both; on the host if both are.
    """
    is_here = isinstance(a.comoment, np.ndarray) and isinstance(b.comoment, np.ndarray)
    merge = _merged if is_here else _merged_there
    parts = (a.mean, a.comoment), (b.mean, b.comoment)
    return Moments(a.count + b.count, *merge(*parts, _shares(a.count, b.count)))


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


def real_samples(samples: Values) -> Any:
    """Take complex samples as twice as many real ones."""
    if jnp.iscomplexobj(samples):
        return library_of(samples).concatenate([samples.real, samples.imag])
    return samples.astype(np.float32)


def _sums_of(units: Sequence[_Units]) -> dict[str, _Sums]:
    parts = {}
    for name in units[0]:
        means, samples = zip(*(model[name] for model in units), strict=True)
        mean = jnp.concatenate(means, axis=-1)
        parts[name] = mean, blocks_of(samples)
    return parts


def _merged(a: _Sums, b: _Sums, shares: tuple[Any, Any]) -> _Sums:
    (mean_a, comoment_a), (mean_b, comoment_b), (share, weight) = a, b, shares
    step = mean_b - mean_a
    outer = step[..., :, None] * step[..., None, :]
    return mean_a + share * step, comoment_a + comoment_b + weight * outer


_merged_there = jax.jit(_merged)


@functools.partial(jax.jit, donate_argnums=0)
def _added(
    total: dict[str, _Sums], units: list[_Units], shares: dict[str, tuple[Any, Any]]
) -> tuple[dict[str, _Sums], dict[str, jax.Array]]:
    """Add samples to sums; return the sums, and which units are not finite."""
    more = _sums_of(units)
    merged = {name: _merged(total[name], more[name], shares[name]) for name in shares}
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
