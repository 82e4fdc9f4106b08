"""Leafwise: merge one leaf of all models, from whatever memory they are in."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.averages import summed_deltas
from jmudsc.finetunes.job import (
    evidence_of,
    Job,
    LeafPlan,
    Leaves,
    options_at,
    pieces,
    read,
    spot_of,
    widened,
)
from jmudsc.finetunes.leaf_memory import leaf_memory
from jmudsc.finetunes.on_disk import is_read_in_parts, is_same_on_disk, read_in_parts
from jmudsc.finetunes.option import Number, Option
from jmudsc.finetunes.piece import CHUNK, Entries, Piece, Rule
from jmudsc.finetunes.settings import Spot, value_at
from jmudsc.finetunes.spectral import calibrated
from jmudsc.finetunes.votes import Ballot
from jmudsc.lazy import is_lazy, LazyArray, present
from jmudsc.progress import Progress, silent
from jmudsc.sharding import placed_like

LAMBDA = Option("lambda_", 1.0, Number(), "what is added to the base is times this")


def merge_leaf(job: Job, path: str) -> np.ndarray:
    """Merge one leaf.

    Args:
        job: the merge.
        path: the leaf.

    Returns:
        An array of the shape and dtype of the base, or of the first model without one:
        computed in float32, matrices in float64, and rounded once.
    """
    plan = job.plans[path]
    if plan.copied is not None:
        return copied(job, path)
    if is_read_in_parts(job, plan):
        if _keeps_equal(job, plan) and is_same_on_disk(job, plan):
            return np.asarray(present(job.models[0][path]))
        return _by_chunks(job, *read_in_parts(job, path))
    leaves = read(job, path)
    if leaves.is_same and _keeps_equal(job, plan):
        return leaves.donor
    if _is_elementwise(job, leaves):
        models = [plan.layout.runs(model) for model in leaves.stored_models]
        stored = leaves.stored_base
        base = None if stored is None else plan.layout.runs(stored)
        return _by_chunks(job, leaves, models, base)
    _check_finite(leaves)
    if np.iscomplexobj(leaves.donor):
        real, imag = (_component(leaves, part) for part in (np.real, np.imag))
        both = [joined(job, part, made(job, part)) for part in (real, imag)]
        return (both[0] + 1j * both[1]).astype(leaves.donor.dtype)
    return joined(job, leaves, made(job, leaves))


def merge_tree(job: Job, donor: PyTree, progress: Progress = silent) -> PyTree:
    """Merge all leaves: now, or where a tree is on disk when each is read.

    Args:
        job: the merge.
        donor: the tree whose structure and placement the result has.
        progress: called with how many leaves are merged.
    """
    leaves = paths.flatten(donor)
    if any(map(is_lazy, [donor, *job.models])):
        return paths.unflatten(donor, {p: _lazy(job, p, x) for p, x in leaves.items()})
    merged = {}
    for number, (path, leaf) in enumerate(leaves.items()):
        progress("merging", number, len(leaves))
        value = merge_leaf(job, path)
        is_jax = isinstance(leaf, jax.Array)
        merged[path] = placed_like(jnp.asarray(value), leaf) if is_jax else value
    return paths.unflatten(donor, merged)


def _lazy(job: Job, path: str, leaf: Any) -> LazyArray:
    """Return a leaf that is merged when it is read."""
    fetch = lambda names: {name: merge_leaf(job, name) for name in names}
    cost = leaf_memory(job, job.plans[path])
    return LazyArray(path, tuple(leaf.shape), np.dtype(leaf.dtype), fetch, cost)


def copied(job: Job, path: str) -> np.ndarray:
    """Return a leaf as it is in the base, or the first model without one."""
    return np.asarray(job.donor(path))


def made(job: Job, leaves: Leaves) -> list[np.ndarray]:
    """Return what the method makes of each piece of a leaf, not yet scaled."""
    path, rule = leaves.plan.path, _rule(job, leaves)
    if job.made is not None and path in job.made:
        return job.made[path]
    measures = leaves.plan.method.measures
    parts = []
    for piece in pieces(job, leaves):
        known = measures(piece.entries) if measures else piece.evidence
        parts.append(rule(replace(piece, evidence=known)))
    if job.made is not None and not np.iscomplexobj(leaves.donor):
        job.made[path] = parts
    return parts


def joined(job: Job, leaves: Leaves, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Scale what was made of the pieces of a leaf, and add it to the base.

    Args:
        job: the merge.
        leaves: the leaf.
        parts: what `made` returned.
    """
    plan, layout = leaves.plan, leaves.plan.layout
    scaled = [
        _scaled(job, leaves, part, number=number, count=len(parts))
        for number, part in enumerate(parts)
    ]
    zeros = np.zeros(leaves.base.shape, leaves.base.dtype)
    join = layout.with_matrices if plan.cuts_matrices else layout.with_runs
    step = join(zeros, np.stack(scaled))
    if job.calibrate and layout.is_matrix and not plan.is_statistic:
        step = _calibrated(leaves, step, job.calibrate[plan.method.name])
    return _added(leaves.base, step, leaves.donor.dtype)


def _added(base: np.ndarray, step: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Add to the base and round once; what nothing is added to keeps its bits."""
    total = (base + step).astype(base.dtype, copy=False)
    zeros = total == 0
    if zeros.any():  # -0 + 0 is 0
        np.copyto(total, base, where=zeros & (step == 0))
    return total.astype(dtype, copy=False)


def _is_elementwise(job: Job, leaves: Leaves) -> bool:
    """Whether every entry of a leaf can be merged by itself."""
    plan = leaves.plan
    is_plain = not (plan.is_statistic or job.calibrate or np.iscomplexobj(leaves.donor))
    return plan.method.is_elementwise and is_plain


def _by_chunks(
    job: Job, leaves: Leaves, models: Sequence[Any], base: Any
) -> np.ndarray:
    """Merge runs a few entries at a time, which stay in a fast cache."""
    layout = leaves.plan.layout
    merged = np.empty(models[0].shape, leaves.donor.dtype)
    for run in range(len(merged)):
        entries = _entries(job, leaves, run, models, base)
        scaled = partial(_scaled, job, leaves, number=run, count=len(merged))
        _merge_run(leaves, entries, scaled, merged[run])
    return layout.with_runs(leaves.donor, merged)


def _merge_run(
    leaves: Leaves,
    entries: Entries,
    scaled: Callable[[np.ndarray], np.ndarray],
    merged: np.ndarray,
) -> None:
    """Merge the entries of one run into an array, a few at a time."""
    method = leaves.plan.method
    assert method.rule is not None
    known, ballot = dict(entries.evidence), Ballot()
    if method.measures:
        known |= method.measures(entries)
    if "majority" not in entries.evidence:  # not counted yet
        known["ballot"] = ballot
    later = []
    for start in range(0, entries.size, CHUNK):
        part = entries.read(start, min(start + CHUNK, entries.size))
        _check_numbers(leaves.plan.path, part.base, part.models)
        step = scaled(method.rule(replace(part, evidence=known)))
        merged[start : start + len(step)] = _added(part.base, step, merged.dtype)
        for places, other in ballot.undecided:
            other = _added(part.base[places], scaled(other), merged.dtype)
            later.append((start, places, other))
        ballot.undecided = []
    for start, places, other in later if ballot.most < 0 else ():
        merged[start + places] = other


def _entries(
    job: Job,
    leaves: Leaves,
    run: int,
    models: Sequence[Any],
    base: Any,
) -> Entries:
    """Return the entries of one run of a leaf, widened when they are read."""
    options = options_at(
        leaves.plan, spot_of(leaves, run, models[0].shape[0]), len(models)
    )
    evidence = evidence_of(job, leaves.plan, run)

    def part(start: int, stop: int) -> Piece:
        own = tuple(widened(model[run, start:stop], leaves.wide) for model in models)
        zeros = np.zeros_like(own[0])
        under = zeros if base is None else widened(base[run, start:stop], leaves.wide)
        return Piece(under, own, options, evidence)

    return Entries(models[0].shape[1], part, options, evidence)


def _check_finite(leaves: Leaves) -> None:
    """Check what has been read, which on disk nothing has checked before."""
    _check_numbers(leaves.plan.path, leaves.base, leaves.models)


def _check_numbers(path: str, base: np.ndarray, models: Sequence[np.ndarray]) -> None:
    named = {f"models[{n}]": model for n, model in enumerate(models)}
    for name, leaf in {"base": base, **named}.items():
        if not np.isfinite(leaf).all():
            raise ValueError(
                f"merge_finetunes: expected finite numbers, got NaN or infinity in "
                f"{path} of {name}. Take an earlier checkpoint of that run."
            )


def _calibrated(leaves: Leaves, step: np.ndarray, alpha: float) -> np.ndarray:
    """Return what is added to the base with the directions of its matrices rescaled."""
    cut = leaves.plan.layout.matrices
    deltas = [cut(model - leaves.base) for model in leaves.models]
    groups = zip(cut(step), *deltas, strict=True)
    found = np.stack([calibrated(each, own, alpha) for each, *own in groups])
    return leaves.plan.layout.with_matrices(step, found)


def _component(leaves: Leaves, part: Callable[[np.ndarray], np.ndarray]) -> Leaves:
    """Return the real or imaginary parts of a complex leaf."""
    return replace(
        leaves,
        donor=part(leaves.base),
        stored_base=part(leaves.base),
        stored_models=tuple(map(part, leaves.models)),
    )


def _rule(job: Job, leaves: Leaves) -> Rule:
    """Return what merges the pieces of a leaf."""
    plan = leaves.plan
    is_statistic = plan.is_statistic and plan.method.base != "unused"
    if is_statistic or (plan.method.cuts == "matrices" and not plan.cuts_matrices):
        if plan.method.vectors is not None and job.vectors == "average":
            return plan.method.vectors
        return _VECTORS["average" if is_statistic else job.vectors]
    assert plan.method.rule is not None
    return plan.method.rule


def _scaled(
    job: Job, leaves: Leaves, part: np.ndarray, *, number: int, count: int
) -> np.ndarray:
    plan = leaves.plan
    if plan.method.lambda_ is None:
        return part
    spot = spot_of(leaves, number, count)
    scale = float(value_at(LAMBDA, plan.settings["lambda_"], spot, len(job.models)))
    if plan.is_statistic:  # beyond the mean a variance may be negative
        scale = min(max(scale, 0.0), 1.0)
    return part if scale == 1 else scale * part


def _keeps_equal(job: Job, plan: LeafPlan) -> bool:
    """Whether a leaf that is equal in all models is to stay as it is."""
    if plan.method.base == "unused" and plan.settings.get("normalize") is False:
        spot = Spot(plan.path, plan.depth)
        weights = options_at(plan, spot, len(job.models))["weight"]
        return sum(weights) == 1
    return True


def _average(piece: Piece) -> np.ndarray:
    return functools.reduce(np.add, piece.deltas) / np.float32(len(piece.deltas))


def _zero(piece: Piece) -> np.ndarray:
    return np.zeros_like(piece.base)


_VECTORS: dict[str, Rule] = {"average": _average, "sum": summed_deltas, "zero": _zero}
VECTORS = tuple(_VECTORS)
