"""Finetuned: merge the fine-tunes of a recipe, whose models stay on disk."""

import dataclasses
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jmudsc.checkpoints.dtypes import cast
from jmudsc.checkpoints.filling import Filling
from jmudsc.finetunes.merge_finetunes import merge_requested, reads_all
from jmudsc.finetunes.options import FinetuneOptions
from jmudsc.finetunes.plan_job import plan_job
from jmudsc.finetunes.request import Request, trunk_of
from jmudsc.finetunes.task_batches import task_batches
from jmudsc.lora.merge_loras import FULL
from jmudsc.matching.journal import Journal
from jmudsc.merging.memory_budget import room
from jmudsc.merging.result import MergeResult
from jmudsc.paths import flatten
from jmudsc.processes import told_by_first
from jmudsc.progress import Progress, silent
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.hugging_face import axes_of, fitted
from jmudsc.recipes.lora_models import merged_in_space
from jmudsc.recipes.resolve import lazy_models, options_of
from jmudsc.recipes.schema import Recipe

# What the program itself takes; the least that leaves may take; and the most threads.
_OWN, _LEAST, _MOST_THREADS = 2**29, 2**26, 8


def merge_finetuned(
    recipe: Recipe, named: Mapping[str, Any], progress: Progress | None
) -> MergeResult:
    """Merge the fine-tunes of a recipe.

    Args:
        recipe: the recipe.
        named: what its import paths name.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The merge; its variables are lazy, unless all models had to be in memory.

    Raises:
        FileNotFoundError: if a checkpoint is not there.
        ValueError: if something in the recipe, a checkpoint or the models is wrong.
    """
    check_different(recipe)
    trees = fitted(recipe, lazy_models(recipe, recipe.sources, progress))
    if recipe.dtype is not None:  # of the donor, as of the sum: it is rounded once
        donor = 0 if recipe.base is None else -1
        trees[donor] = cast(trees[donor], recipe.dtype, widen=True)
    *models, last = trees
    given = ([*models, last], None) if recipe.base is None else (models, last)
    request = request_of(recipe, named, *given, progress=progress)
    if jax.process_count() > 1:
        _check_leaf_by_leaf(request)
    if recipe.space == FULL:
        result = merge_requested(request)
    else:
        result = merged_in_space(recipe, request)
    return result if recipe.dtype is None else _cast(result, recipe.dtype)


def _cast(result: MergeResult, dtype: str) -> MergeResult:
    """Return a result whose floating-point leaves are of another type."""
    return dataclasses.replace(
        result,
        variables=cast(result.variables, dtype),
        networks=tuple(cast(network, dtype) for network in result.networks),
        recipe={**result.recipe, "dtype": dtype},
    )


def _check_leaf_by_leaf(request: Request) -> None:
    """Check that leaves can be dealt out to several processes."""
    job = plan_job("recipe", trunk_of("recipe", request))
    if reads_all(job, request):
        raise ValueError(
            f"recipe: expected a merge that goes leaf by leaf, since "
            f"{jax.process_count()} processes do it, each its share, got one that "
            "needs whole models: data, a search or a repair. Merge in one process."
        )


def filling_of(
    recipe: Recipe,
    journal: Journal | None,
    target: Path,
    memory: int | None,
    progress: Progress | None,
) -> Filling:
    """Return how the leaves of a merge are kept until all are merged.

    What is kept is taken up again for the same files and options only; and not where a
    function decides how leaves are cut, of which nobody knows whether it was changed.

    Args:
        recipe: the recipe.
        journal: that of the recipe; None where the models have no fingerprints.
        target: the output.
        memory: bytes that merging may take; half of what the machine has, if None.
        progress: called with the stage, how much of it is done, and out of how much.
    """
    known = journal is not None and recipe.apply_fn is None
    decisive = dump_recipe(recipe) if known else secrets.token_hex(8)
    if jax.process_count() > 1 and not known:
        decisive = told_by_first(decisive)
    folder = target.with_name(f".{target.name}.jmudsc-journal")
    return Filling(
        folder if journal is None else journal.folder,
        f"{journal.identity if journal else ''} {decisive}",
        max((room() if memory is None else memory) - _OWN, _LEAST),
        min(len(os.sched_getaffinity(0)), _MOST_THREADS),
        progress or silent,
    )


def request_of(
    recipe: Recipe,
    named: Mapping[str, Any],
    models: list[Any],
    base: Any,
    *,
    progress: Progress | None = None,
) -> Request:
    """Return what a recipe asks for of fine-tunes.

    Args:
        recipe: the recipe.
        named: what its import paths name.
        models: the variables of each model, or their shapes.
        base: those of the base; None without one.
        progress: called with the stage, how much of it is done, and out of how much.
    """
    options = options_of(recipe, named)
    assert isinstance(options, FinetuneOptions)
    axes = {**options.common.axes, **axes_of(recipe, list(flatten(models[0])))}
    return Request(
        models,
        base,
        options.method,
        options.settings,
        dataclasses.replace(options.common, progress=progress, axes=axes),
        named.get("apply_fn"),
        task_batches("recipe", named.get("batches"), None, len(models)),
        jax.random.key(recipe.seed),
    )


def check_different(recipe: Recipe) -> None:
    """Check that no model is given twice, and none is the base.

    Args:
        recipe: the recipe.

    Raises:
        ValueError: naming the first one that is given again.
    """
    seen: dict[Any, str] = {}
    names = [f"models: entry {n}" for n in range(len(recipe.models))]
    for name, source in zip([*names, "base"], recipe.sources, strict=False):
        where = recipe.place(source.path)
        real = where if "://" in where else str(Path(where).expanduser().resolve())
        same = real, source.subtree
        if same in seen:
            raise ValueError(
                f"recipe: {name}: expected another checkpoint than {seen[same]}, got "
                f"{source.path} for both. Name each model once, and the base as base "
                "only."
            )
        seen[same] = name
