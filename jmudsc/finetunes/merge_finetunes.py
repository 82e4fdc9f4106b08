"""Merge fine-tunes: models that were trained from one base become one, in one call."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.derivation.program import trace
from jmudsc.finetunes.ending import Ended, ended
from jmudsc.finetunes.feature_fits import fit_features
from jmudsc.finetunes.greedy_soup import greedy_soup
from jmudsc.finetunes.job import Job
from jmudsc.finetunes.kernels import kernels_of, layouts_by_use
from jmudsc.finetunes.lambda_search import search_lambda
from jmudsc.finetunes.leaf_layout import Layout
from jmudsc.finetunes.leafwise import merge_tree
from jmudsc.finetunes.learned import learned
from jmudsc.finetunes.options import parted
from jmudsc.finetunes.plan_job import plan_job
from jmudsc.finetunes.recorded import changes_of, recorded
from jmudsc.finetunes.request import in_memory, Request, trunk_of
from jmudsc.finetunes.settings import matched
from jmudsc.finetunes.shared_start import strangers_hint, wrong_base_hint
from jmudsc.finetunes.task_batches import task_batches
from jmudsc.finetunes.tree_checks import (
    check_all_finite,
    check_no_factors,
    check_trees,
)
from jmudsc.merging.result import MergeResult
from jmudsc.progress import silent, timed
from jmudsc.types import ApplyFn

_WHERE = "merge_finetunes"
_log = logging.getLogger(__name__)


def merge_finetunes(
    models: Sequence[PyTree],
    base: PyTree | None = None,
    method: str | Mapping[str, str] = "task_arithmetic",
    *,
    apply_fn: ApplyFn | Sequence[ApplyFn] | None = None,
    batches: Iterable[PyTree] | None = None,
    key: Any = None,
    weight: Any = 1.0,
    lambda_: Any = None,
    **options: Any,
) -> MergeResult:
    """Merge models that were fine-tuned from one base, leaf by leaf.

    Models that share a start have their units in one order, so nothing is matched. Most
    methods add to the base what was trained into the models, `D_i = W_i - base`; see
    docs/finetunes.md for all of them, with their formulas and options.

    Trees from `load(..., lazy=True)` stay on disk: every leaf is read, merged and
    written by itself, to the same bits as in memory. Methods that need data or a score
    read all models first.

    An option is one value, or varies: `weight` and `density` may be a list with one for
    each model; any option of a method may be patterns of leaf paths with values, of
    which the first that matches counts (`{"*/kernel": 0.5, "*": 1.0}`; a pattern that
    begins with `re:` is a regular expression), and numbers a list that runs over the
    depth of the network and is interpolated between.

    Args:
        models: the variables of each model.
        base: the variables that they were trained from; not needed for averages.
        method: the name of a method, or patterns of leaves with names.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode, for methods that
            need data. With it all methods learn from the model which axes of a leaf go
            in and which run over layers; without it they go by name and rank.
        batches: unlabelled inputs, any re-iterable of what `apply_fn` takes.
        key: a PRNG key, for methods that draw numbers; the same key, the same bits.
        weight: how much each model counts; negative to take something away.
        lambda_: the scale of what is added to the base; `"auto"` for one over the
            number of models, `"search"` for that of `lambdas` with the best `score`,
            None for that of the method: 1, of `iso_c` and `iso_cts` 1.4, of `featcal`
            0.3.
        **options: those of the method, and for all methods: `exclude`, patterns of
            leaves that are taken from the base; `axes`, pattern of leaves -> a letter
            for each axis, `l` for stacked layers, `b` for what is merged apart, `i` for
            in, `o` for out; `vectors`, what leaves that are no matrix become where
            matrices are merged, `"average"`, `"sum"` or `"zero"` of the deltas;
            `calibrate="svc"` with `calibrate_alpha`, to rescale the directions of every
            merged matrix; `owners`, for each batch the number of the model of whose
            task it is (None: of all); `score`, a function of variables (with
            `separate` of those of all networks) that is larger for better ones;
            `lambdas`, the scales that a search tries; `check`, whether to warn of a
            base that is probably a wrong one, or models that share no start;
            `progress`; and as in `merge`:
            `separate`, patterns of leaves that every model keeps its own of, heads say
            (then `apply_fn` and `update_fn` may be one for each model), `update_fn`,
            `refit` (its ridge is `refit_ridge`) and `repair`.

    Returns:
        The merged variables, of the structure and dtypes of the base. Leaves equal in
        all models and the base come back bit for bit; leaves that hold no
        floating-point numbers are the base's, and running statistics are averaged. The
        assignment leaves all units in place: nothing is matched.

    Raises:
        TypeError: if a leaf is no array, `batches` is a single batch, or `key` no key.
        ValueError: if the trees differ, an option does not fit, or something that the
            method needs is missing; everything that is wrong at once.

    Example:
        >>> import jax.numpy as jnp
        >>> base = {"kernel": jnp.zeros((2, 2))}
        >>> models = [{"kernel": jnp.eye(2)}, {"kernel": jnp.ones((2, 2))}]
        >>> merge_finetunes(models, base).variables["kernel"].tolist()
        [[2.0, 1.0], [1.0, 2.0]]
    """
    common, own = parted(options)
    own |= {} if isinstance(weight, float) and weight == 1 else {"weight": weight}
    own |= {} if lambda_ is None else {"lambda_": lambda_}
    models = list(models)
    tasks = task_batches(_WHERE, batches, common.owners, len(models))
    whole = Request(models, base, method, own, common, apply_fn, tasks, key)
    return merge_requested(whole)


def merge_requested(whole: Request) -> MergeResult:
    """Merge as `merge_finetunes` does, by a record of what is asked for.

    Args:
        whole: what is asked for, of whole models.

    Returns:
        As `merge_finetunes`.

    Raises:
        TypeError: as `merge_finetunes`.
        ValueError: as `merge_finetunes`.
    """
    common, request = whole.common, trunk_of(_WHERE, whole)
    check_trees(_WHERE, request.models, request.base)
    check_no_factors(_WHERE, merged_paths(request))
    plan = plan_job(_WHERE, request)  # all that may be wrong is told before any work
    if reads_all(plan, request):
        whole = in_memory(whole)
        request = trunk_of(_WHERE, whole)
    check_all_finite(_WHERE, request.models, request.base)
    seconds: dict[str, float] = {}
    with timed(seconds, "learning"):
        job = plan_job(_WHERE, request, layouts_by_function(whole))
        if common.check:
            _warn_of_start(job)
        job = learned(_WHERE, job, request)
    with timed(seconds, "merging"):
        end, told = _done(job, request, whole)
    return MergeResult(
        end.networks[0],
        end.spec,
        end.assignment,
        recipe=recorded(request) | told,
        changes={**changes_of(job), **end.changes},
        networks=tuple(end.networks) if common.separated else (),
        seconds=seconds,
    )


def merged_paths(request: Request) -> list[str]:
    """Return the paths of the leaves that are not taken from the base as they are."""
    leaves, excluded = paths.flatten(request.donor), request.common.excluded
    return [path for path in leaves if matched(path, excluded) is None]


def reads_all(job: Job, request: Request) -> bool:
    """Whether a merge needs all models in memory at once, wherever they are."""
    common = request.common
    repairs = common.refit or common.repair or common.update_fn or common.separated
    return bool(repairs or request.lambda_ == "search") or any(
        plan.method.needs_data or plan.method.runs for plan in job.plans.values()
    )


def layouts_by_function(request: Request) -> dict[str, Layout] | None:
    """Return how leaves are cut by what the model does with them, if it is given."""
    if request.apply_fn is None or request.tasks is None:
        return None
    variables = request.models[0] if request.common.separated else request.donor
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf.dtype)),
        variables,
    )
    first = next(request.tasks.of(0, 2))
    kernels = kernels_of(trace(request.first_fn, shapes, first))
    leaves = paths.flatten(shapes)
    return layouts_by_use(kernels, {path: x.shape for path, x in leaves.items()})


def _warn_of_start(job: Job) -> None:
    """Warn of models that probably do not share a start, or not the base."""
    if job.base is None:
        hint = strangers_hint(_WHERE, job.models)
    else:
        hint = wrong_base_hint(_WHERE, job.models, job.base)
    if hint is not None:
        _log.warning("%s", hint)


def _done(job: Job, request: Request, whole: Request) -> tuple[Ended, dict[str, Any]]:
    """Do a job as its methods and its scale ask for; return also what to tell of it."""
    common, say = request.common, request.common.progress or silent
    first = next(iter(job.plans.values()))

    def do(each: Job) -> Ended:
        merged, fitted = merge_tree(each, request.donor, say), {}
        if first.method.runs == "layers":
            merged, fitted = fit_features(each, request, merged)
        end = ended(_WHERE, whole, merged)
        return replace(end, changes={**fitted, **end.changes})

    def score(end: Ended) -> float:
        assert common.score is not None
        return common.score(end.networks if common.separated else end.networks[0])

    if first.method.runs == "greedy":
        return greedy_soup(job, do, score, first.settings["order"])
    if request.lambda_ == "search":
        known = replace(job, made={})
        at = lambda scale: do(known.with_settings(lambda_=scale))
        return search_lambda(at, score, common.lambdas)
    return do(job), {}
