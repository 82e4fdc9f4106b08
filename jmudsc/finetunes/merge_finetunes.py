"""Merge fine-tunes: models that were trained from one base become one, in one call."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.derivation.program import trace
from jmudsc.finetunes.feature_fits import fit_features
from jmudsc.finetunes.greedy_soup import greedy_soup
from jmudsc.finetunes.job import Job
from jmudsc.finetunes.kernels import kernels_of, layouts_by_use
from jmudsc.finetunes.lambda_search import search_lambda
from jmudsc.finetunes.leaf_layout import Layout
from jmudsc.finetunes.leafwise import merge_leaf
from jmudsc.finetunes.learned import learned
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.plan_job import check_all_finite, check_trees, plan_job
from jmudsc.finetunes.request import parted, Request
from jmudsc.finetunes.shared_start import warn_of_base
from jmudsc.finetunes.task_batches import task_batches
from jmudsc.lazy import is_lazy, LazyArray, to_device
from jmudsc.merging.result import MergeResult
from jmudsc.progress import Progress, silent, timed
from jmudsc.sharding import placed_like
from jmudsc.spec.axes import Fixed
from jmudsc.spec.permutation_spec import PermutationSpec, Site
from jmudsc.types import ApplyFn

_WHERE = "merge_finetunes"


def merge_finetunes(
    models: Sequence[PyTree],
    base: PyTree | None = None,
    method: str | Mapping[str, str] = "task_arithmetic",
    *,
    apply_fn: ApplyFn | None = None,
    batches: Iterable[PyTree] | None = None,
    key: jax.Array | None = None,
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
            task it is (None: of all); `score`, a function of variables that is larger
            for better ones; `lambdas`, the scales that a search tries; `check`, whether
            to warn of a base that is probably a wrong one; `progress`.

    Returns:
        The merged variables, of the structure and dtypes of the base. Leaves equal in
        all models and the base come back bit for bit; leaves that hold no
        floating-point numbers are the base's, and running statistics are averaged. The
        assignment is empty, and all axes of the spec are fixed: nothing is matched.

    Raises:
        TypeError: if a leaf is no array, or `batches` is a single batch.
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
    check_trees(_WHERE, models, base)
    tasks = task_batches(_WHERE, batches, common.owners, len(models))
    request = Request(models, base, method, own, common, apply_fn, tasks, key)
    plan_job(_WHERE, request)  # all that may be wrong is told before any work
    if reads_all(request):
        models = [to_device(model) for model in models]
        base = None if base is None else to_device(base)
        request = replace(request, models=models, base=base)
    check_all_finite(_WHERE, models, base)
    seconds: dict[str, float] = {}
    with timed(seconds, "learning"):
        job = plan_job(_WHERE, request, layouts_by_function(request))
        if common.check and base is not None:
            warn_of_base(_WHERE, job)
        job = learned(_WHERE, job, request)
    with timed(seconds, "merging"):
        variables, told = _variables(job, request)
    return MergeResult(
        variables,
        fixed_spec(request.donor),
        {},
        recipe=_recipe(request) | told,
        changes=_changes(job),
        seconds=seconds,
    )


def reads_all(request: Request) -> bool:
    """Whether a merge needs all models in memory at once, wherever they are."""
    return request.lambda_ == "search" or any(
        method.needs_data or method.runs for method in methods_in(request)
    )


def methods_in(request: Request) -> list[Method]:
    """Return the rows of the methods that are asked for."""
    return list(
        {
            p.method.name: p.method for p in plan_job(_WHERE, request).plans.values()
        }.values()
    )


def layouts_by_function(request: Request) -> dict[str, Layout] | None:
    """Return how leaves are cut by what the model does with them, if it is given."""
    if request.apply_fn is None or request.tasks is None:
        return None
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf.dtype)),
        request.donor,
    )
    first = next(request.tasks.of(0, 2))
    kernels = kernels_of(trace(request.apply_fn, shapes, first))
    leaves = paths.flatten(shapes)
    return layouts_by_use(kernels, {path: x.shape for path, x in leaves.items()})


def fixed_spec(variables: PyTree) -> PermutationSpec:
    """Return the spec of variables of which no unit moves."""
    axes = {
        path: tuple(Fixed(size) for size in np.shape(leaf))
        for path, leaf in paths.flatten(variables).items()
    }
    why = "fine-tunes of one base have their units in one order"
    fixed = {
        Site(path, number): why
        for path, each in axes.items()
        for number, axis in enumerate(each)
        if axis.size > 1
    }
    return PermutationSpec(axes, {}, fixed)


def leafwise(job: Job, donor: PyTree, progress: Progress = silent) -> PyTree:
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


def _variables(job: Job, request: Request) -> tuple[PyTree, dict[str, Any]]:
    """Do a job as its methods and its scale ask for; return also what to tell of it."""
    common, say = request.common, request.common.progress or silent
    first = next(iter(job.plans.values()))

    def do(each: Job) -> PyTree:
        merged = leafwise(each, request.donor, say)
        if first.method.runs != "layers":
            return merged
        return fit_features(each, request, merged)[0]

    if first.method.runs == "greedy":
        assert common.score is not None
        return greedy_soup(job, do, common.score, first.settings["order"])
    if request.lambda_ == "search":
        assert common.score is not None
        at = lambda scale: do(job.with_settings(lambda_=scale))
        return search_lambda(at, common.score, common.lambdas)
    return do(job), {}


def _recipe(request: Request) -> dict[str, Any]:
    """Return what decided a merge, in plain values."""
    common = request.common
    told = {
        "method": _plain(request.method),
        "base": request.base is not None,
        "models": len(request.models),
        **{name: _plain(value) for name, value in request.options.items()},
    }
    extra = {
        "exclude": common.excluded,
        "axes": dict(common.axes),
        "calibrate": common.calibrate,
        "calibrate_alpha": common.calibrate_alpha,
        "vectors": None if common.vectors == "average" else common.vectors,
        "batches per model": request.tasks
        and request.tasks.owners
        and [request.tasks.owners.count(n) for n in range(len(request.models))],
    }
    return told | {name: _plain(value) for name, value in extra.items() if value}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def _changes(job: Job) -> dict[str, str]:
    """Return which leaves are not merged, and why."""
    return {
        path: f"taken from {'the first model' if job.base is None else 'the base'}: it "
        f"{plan.copied}"
        for path, plan in job.plans.items()
        if plan.copied is not None
    }
