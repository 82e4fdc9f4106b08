"""Leafwise: merge one leaf of all models, from whatever memory they are in."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.job import Job, Leaves, options_at, pieces, read
from jmudsc.finetunes.option import Number, Option
from jmudsc.finetunes.piece import Piece, Rule
from jmudsc.finetunes.settings import Spot, value_at
from jmudsc.finetunes.spectral import calibrated
from jmudsc.lazy import is_lazy, LazyArray
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
    leaves = read(job, path)
    _check_finite(leaves)
    if leaves.is_same and _keeps_equal(leaves, len(job.models)):
        return leaves.donor
    if np.iscomplexobj(leaves.base):
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
        fetch = lambda names: {name: merge_leaf(job, name) for name in names}
        lazy = {
            path: LazyArray(path, tuple(leaf.shape), np.dtype(leaf.dtype), fetch)
            for path, leaf in leaves.items()
        }
        return paths.unflatten(donor, lazy)
    merged = {}
    for number, (path, leaf) in enumerate(leaves.items()):
        progress("merging", number, len(leaves))
        value = merge_leaf(job, path)
        is_jax = isinstance(leaf, jax.Array)
        merged[path] = placed_like(jnp.asarray(value), leaf) if is_jax else value
    return paths.unflatten(donor, merged)


def copied(job: Job, path: str) -> np.ndarray:
    """Return a leaf as it is in the base, or the first model without one."""
    return np.asarray(job.donor(path))


def made(job: Job, leaves: Leaves) -> list[np.ndarray]:
    """Return what the method makes of each piece of a leaf, not yet scaled."""
    path, rule = leaves.plan.path, _rule(job, leaves)
    if job.made is not None and path in job.made:
        return job.made[path]
    parts = [rule(piece) for piece in pieces(job, leaves)]
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
        _scaled(job, leaves, part, number, len(parts))
        for number, part in enumerate(parts)
    ]
    zeros = np.zeros(leaves.base.shape, leaves.base.dtype)
    join = layout.with_matrices if plan.cuts_matrices else layout.with_runs
    step = join(zeros, np.stack(scaled))
    if job.calibrate and layout.is_matrix and not plan.is_statistic:
        step = _calibrated(leaves, step, job.calibrate[plan.method.name])
    total = (leaves.base + step).astype(leaves.base.dtype, copy=False)
    np.copyto(total, leaves.base, where=step == 0)  # bitwise, -0 included
    return total.astype(leaves.donor.dtype, copy=False)


def _check_finite(leaves: Leaves) -> None:
    """Check what has been read, which on disk nothing has checked before."""
    named = {f"models[{n}]": model for n, model in enumerate(leaves.models)}
    for name, leaf in {"base": leaves.base, **named}.items():
        total = np.sum(leaf, dtype=np.promote_types(leaf.dtype, np.float64))
        if not np.isfinite(total) and not np.isfinite(leaf).all():
            raise ValueError(
                f"merge_finetunes: expected finite numbers, got NaN or infinity in "
                f"{leaves.plan.path} of {name}. Take an earlier checkpoint of that run."
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
        base=part(leaves.base),
        models=tuple(map(part, leaves.models)),
    )


def _rule(job: Job, leaves: Leaves) -> Rule:
    """Return what merges the pieces of a leaf."""
    plan = leaves.plan
    is_statistic = plan.is_statistic and plan.method.base != "unused"
    if is_statistic or (plan.method.cuts == "matrices" and not plan.cuts_matrices):
        return _VECTORS["average" if is_statistic else job.vectors]
    assert plan.method.rule is not None
    return plan.method.rule


def _scaled(
    job: Job, leaves: Leaves, part: np.ndarray, number: int, count: int
) -> np.ndarray:
    plan = leaves.plan
    if plan.method.lambda_ is None:
        return part
    own = plan.layout.depth(leaves.base.shape, number, count)
    spot = Spot(plan.path, plan.depth if own is None else own)
    scale = float(value_at(LAMBDA, plan.settings["lambda_"], spot, len(job.models)))
    if plan.is_statistic:  # beyond the mean a variance may be negative
        scale = min(max(scale, 0.0), 1.0)
    return part if scale == 1 else scale * part


def _keeps_equal(leaves: Leaves, models: int) -> bool:
    """Whether a leaf that is equal in all models is to stay as it is."""
    plan = leaves.plan
    if plan.method.base == "unused" and plan.settings.get("normalize") is False:
        weights = options_at(plan, Spot(plan.path, plan.depth), models)["weight"]
        return sum(weights) == 1
    return True


def _average(piece: Piece) -> np.ndarray:
    return functools.reduce(np.add, piece.deltas) / np.float32(len(piece.deltas))


def _sum(piece: Piece) -> np.ndarray:
    return functools.reduce(np.add, piece.deltas)


def _zero(piece: Piece) -> np.ndarray:
    return np.zeros_like(piece.base)


_VECTORS: dict[str, Rule] = {"average": _average, "sum": _sum, "zero": _zero}
VECTORS = tuple(_VECTORS)
