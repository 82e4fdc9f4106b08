"""Feature fits: layer by layer, kernels that give the features of the models.

What goes into a layer is what the merged layers before it make of each task's data, as
they have been changed so far.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import batch_kind
from jmudsc.derivation.program import trace
from jmudsc.finetunes.closed_form import shrunk, solved
from jmudsc.finetunes.job import Job
from jmudsc.finetunes.request import Request
from jmudsc.finetunes.spectral import rounding
from jmudsc.finetunes.streams import inputs_at, Layer, layers_of
from jmudsc.repairs.contractions import Form, rows
from jmudsc.sharding import placed_like, to_host


@dataclass(frozen=True, eq=False)
class Moments:
    """What goes into a layer on one task, over its samples.

    Attributes:
        count: number of samples.
        own: sum of x x^T of the merged network, (matrices, in, in).
        cross: sum of x t^T, with t mixed from the features of the model.
        mean: sum of x, (matrices, in).
        target: sum of t.
    """

    count: int
    own: np.ndarray
    cross: np.ndarray
    mean: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Around:
    """One matrix of a layer in all networks.

    Attributes:
        models: of each model.
        biases: of each model; None without a bias.
        start: what it was merged to, as (kernel, bias).
        base: of the base, as (kernel, bias); None without one.
        moments: of each model's task, (in, in) and (in,).
        settings: the options.
    """

    models: Sequence[np.ndarray]
    biases: Sequence[np.ndarray] | None
    start: tuple[np.ndarray, np.ndarray | None]
    base: tuple[np.ndarray, np.ndarray | None] | None
    moments: Sequence[Moments]
    settings: Mapping[str, Any]


# Returns the kernel, and the bias if it changes.
Fit = Callable[[Around], tuple[np.ndarray, np.ndarray | None]]


def regmean_pp(around: Around) -> tuple[np.ndarray, np.ndarray | None]:
    """Fit what each model makes of the merged features (arXiv:2508.03121)."""
    mean = np.mean(around.models, axis=0)
    share = around.settings["offdiag"]
    grams = [shrunk(m.own / m.count, share) for m in around.moments]
    apart = [model - mean for model in around.models]
    return mean + solved(grams, apart, rtol=rounding(mean.shape[:1])), None


def featcal(around: Around) -> tuple[np.ndarray, np.ndarray | None]:
    """Fit the features of each model, not far from an anchor (arXiv:2605.13030)."""
    ridge, beyond = around.settings["ridge"], around.settings["anchor"]
    assert around.base is not None
    grams = [m.own / m.count for m in around.moments]
    scales = [1 / (float(np.linalg.norm(gram)) or 1.0) for gram in grams]
    left = (ridge + 1e-8) * np.eye(len(grams[0]))
    for scale, gram in zip(scales, grams, strict=True):
        left = left + scale * gram
    anchor = beyond * around.start[0] + (1 - beyond) * around.base[0]
    triples = list(zip(scales, around.moments, around.models, strict=True))
    right = sum(s * (m.cross / m.count) @ kernel for s, m, kernel in triples)
    kernel = np.linalg.solve(left, right + ridge * anchor)
    if around.biases is None or around.start[1] is None or around.base[1] is None:
        return kernel, None
    anchor = beyond * around.start[1] + (1 - beyond) * around.base[1]
    total = ridge * anchor
    for (scale, seen, own), bias in zip(triples, around.biases, strict=True):
        total = total + scale * (
            bias + seen.target / seen.count @ own - seen.mean / seen.count @ kernel
        )
    return kernel, total / (sum(scales) + ridge)


FITS: dict[str, Fit] = {"regmean_pp": regmean_pp, "featcal": featcal}


def fit_features(
    job: Job, request: Request, start: PyTree
) -> tuple[PyTree, dict[str, str]]:
    """Fit the kernels of a merged network one after another.

    Args:
        job: the merge, all leaves by one method of `FITS`.
        request: what was asked for, with models in memory.
        start: what the leaves were merged to.

    Returns:
        The variables, and for each leaf that was fitted what was done.
    """
    plan = next(iter(job.plans.values()))
    fit, settings = FITS[plan.method.name], plan.settings
    leaves = {p: jnp.asarray(x) for p, x in paths.flatten(start).items()}
    before = {path: to_host(leaf) for path, leaf in leaves.items()}
    runs = list(_runs(job, request, leaves, settings))
    notes: dict[str, str] = {}
    for number, layer in enumerate(runs[0].layers):
        seen = [run.next_moments(number, settings.get("alpha", 0.0)) for run in runs]
        touched = [layer.path, *([layer.bias] if layer.bias else [])]
        if any(job.plans[path].copied is not None for path in touched):
            continue
        moments = [
            functools.reduce(
                _added, [m for run, m in zip(runs, seen, strict=True) if run.model == n]
            )
            for n in range(len(job.models))
        ]
        for path, values in _fitted(job, layer, before, moments, (fit, settings)):
            value = jnp.asarray(values.astype(before[path].dtype))
            leaves[path] = placed_like(value, leaves[path])
            notes[path] = f"fitted by {plan.method.name}"
    return paths.unflatten(start, leaves), notes


@dataclass(frozen=True, eq=False)
class _Run:
    """One batch on its way through the merged network and the model of its task."""

    model: int
    layers: Sequence[Layer]
    merged: Iterator[jax.Array]
    own: Iterator[jax.Array]

    def next_moments(self, number: int, alpha: float) -> Moments:
        """Go on to the next layer of both, and return what goes into it."""
        kernel = self.layers[number].kernel
        x, t = next(self.merged), next(self.own)
        parts = _moments(kernel.form, kernel.shape, x, t, jnp.float32(alpha))
        count, own, cross, mean, target = parts
        wide = [to_host(part).astype(np.float64) for part in (own, cross, mean, target)]
        return Moments(int(count), *wide)


def _runs(
    job: Job, request: Request, leaves: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[_Run]:
    assert request.apply_fn is not None
    assert request.tasks is not None
    programs: dict[Any, Any] = {}
    for model, tree in enumerate(job.models):
        own = {path: jnp.asarray(x, leaves[path].dtype) for path, x in tree.items()}
        for batch in request.tasks.of(model, settings["samples"]):
            kind = batch_kind(batch)
            if kind not in programs:
                program = trace(request.first_fn, request.donor, batch)
                programs[kind] = program, layers_of(program)
            program, layers = programs[kind]
            ways = [inputs_at(program, layers, x, batch) for x in (leaves, own)]
            yield _Run(model, layers, *ways)


def _fitted(
    job: Job,
    layer: Layer,
    before: Mapping[str, np.ndarray],
    moments: Sequence[Moments],
    how: tuple[Fit, Mapping[str, Any]],
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the leaves of a layer with new entries."""
    fit, settings = how
    kernel, bias = before[layer.path].astype(np.float64), None
    if layer.bias is not None:
        bias = before[layer.bias].astype(np.float64)
    for group in range(len(layer.index)):
        of = lambda leaves, g=group: _matrix(layer, leaves, g)
        every = [of(model) for model in job.models]
        around = Around(
            [each[0] for each in every],
            None if bias is None else [each[1] for each in every],
            of(before),
            None if job.base is None else of(job.base),
            [_of_group(m, group) for m in moments],
            settings,
        )
        new, new_bias = fit(around)
        kernel.reshape(-1)[layer.index[group]] = new
        if bias is not None and new_bias is not None:
            assert layer.bias_index is not None
            bias.reshape(-1)[layer.bias_index[group, 0]] = new_bias
    yield layer.path, kernel
    if layer.bias is not None and bias is not None:
        yield layer.bias, bias


def _matrix(layer: Layer, leaves: Mapping[str, Any], group: int) -> Any:
    """Return one matrix of a layer and its bias, in float64."""
    flat = to_host(leaves[layer.path]).reshape(-1).astype(np.float64)
    kernel = flat[layer.index[group]]
    if layer.bias is None or layer.bias_index is None:
        return kernel, None
    flat = to_host(leaves[layer.bias]).reshape(-1).astype(np.float64)
    return kernel, flat[layer.bias_index[group, 0]]


def _of_group(moments: Moments, group: int) -> Moments:
    return Moments(
        moments.count,
        moments.own[group],
        moments.cross[group],
        moments.mean[group],
        moments.target[group],
    )


def _added(a: Moments, b: Moments) -> Moments:
    return Moments(
        a.count + b.count,
        a.own + b.own,
        a.cross + b.cross,
        a.mean + b.mean,
        a.target + b.target,
    )


@functools.partial(jax.jit, static_argnames=("form", "shape"))
def _moments(
    form: Form, shape: tuple[int, ...], x: jax.Array, own: jax.Array, alpha: jax.Array
) -> tuple[jax.Array, ...]:
    into = rows(form, x.astype(jnp.float32), shape)
    mixed = alpha * rows(form, own.astype(jnp.float32), shape) + (1 - alpha) * into
    product = functools.partial(
        jnp.einsum, "gsi,gsj->gij", precision=jax.lax.Precision.HIGHEST
    )
    count = jnp.int32(into.shape[1])
    both = product(into, into), product(into, mixed)
    return count, *both, into.sum(axis=1), mixed.sum(axis=1)
