"""Merge: do what a recipe says and save the result."""

import dataclasses
import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.batches import Chained
from jmudsc.checkpoints.provenance import versions
from jmudsc.checkpoints.save import check_free
from jmudsc.checkpoints.urls import AnyPath, is_url, path_of
from jmudsc.digests import digest_of
from jmudsc.finetunes.options import FinetuneOptions
from jmudsc.lazy import is_lazy
from jmudsc.matching.journal import Journal
from jmudsc.merging.inputs import Inputs
from jmudsc.merging.memory_budget import left_for_statistics, room
from jmudsc.merging.merge import merge_with
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.report import report
from jmudsc.merging.result import MergeResult
from jmudsc.processes import is_first
from jmudsc.progress import Progress
from jmudsc.recipes.finetuned import filling_of, merge_finetuned
from jmudsc.recipes.hugging_face import written_like
from jmudsc.recipes.lora_models import fingerprint_at
from jmudsc.recipes.reader import read_recipe
from jmudsc.recipes.resolve import (
    load_model,
    load_models,
    open_model,
    options_of,
    outputs,
    resolved,
    spec_by,
)
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.together import check_together, spread_models
from jmudsc.recipes.writing import parents_of, write_networks, Writing
from jmudsc.sharding import mesh_of_all, Spread
from jmudsc.spec.freeze import freeze
from jmudsc.spec.permutation_spec import PermutationSpec

_log = logging.getLogger(__name__)


def merge_recipe(
    path: AnyPath,
    *,
    output: AnyPath | str | None = None,
    overwrite: bool = False,
    memory: int | None = None,
    progress: Progress | None = None,
) -> tuple[AnyPath, str]:
    """Merge the checkpoints of a recipe and save the result.

    Until all is saved, the steps of matching are kept in a hidden folder beside the
    output; if the process dies, the next one for the same models takes them up. None
    are kept where a model or the output is a URL.

    Where several processes call this, with the same recipe on disks that all of them
    see, models and batches are spread over the devices of all, each process reads and
    writes its own parts, and no steps are kept.

    Models that have no room in memory stay on disk and are read leaf by leaf, and
    statistics that have none are gathered in several passes over the batches. The spec
    is then checked only where activations are collected or it was written by hand,
    since it takes a whole model.

    Args:
        path: the recipe, a YAML file, on any file system, as all that it names.
        output: where to write, in the place of the recipe's output.
        overwrite: replace an earlier merge at the recipe's output.
        memory: bytes that the merge may hold: the models and the merged one, the
            statistics of activations, and what is remembered of weights; half of what
            the machine has, if None.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The checkpoint written, and the report in Markdown; the report, the recipe and
        the spec are in the checkpoint too, or beside it if it is a file. With
        `separate`, the folder in which there is one checkpoint for each model,
        `model-0` and so on.

    Raises:
        FileNotFoundError: if the recipe, a checkpoint or its spec is not there.
        FileExistsError: if the output is.
        ValueError: if something in the recipe, a checkpoint or the models is wrong.
    """
    return merge_read(
        path, read_recipe(path, output), Doing(overwrite, memory, progress)
    )


@dataclass(frozen=True)
class Doing:
    """How a recipe is done, whatever stands in it.

    Attributes:
        overwrite: as for `merge_recipe`.
        memory: as for `merge_recipe`.
        progress: as for `merge_recipe`.
    """

    overwrite: bool = False
    memory: int | None = None
    progress: Progress | None = None


def merge_read(path: AnyPath, recipe: Recipe, doing: Doing) -> tuple[AnyPath, str]:
    """Merge by a recipe that was read, as `merge_recipe` does.

    Args:
        path: the recipe's file, named in errors.
        recipe: the recipe.
        doing: how.

    Returns:
        As `merge_recipe`.

    Raises:
        FileNotFoundError: as `merge_recipe`.
        FileExistsError: as `merge_recipe`.
        ValueError: as `merge_recipe`.
    """
    memory, progress, overwrite = doing.memory, doing.progress, doing.overwrite
    if jax.process_count() > 1:
        check_together(path, recipe, memory)
    places = free_places(recipe, overwrite)
    named = resolved(recipe, ("apply_fn", "batches", *recipe.functions))
    # Before the models are read: one that is replaced meanwhile is another later on.
    target = places[0].parent if recipe.options.separate else places[0]
    journal = _journal(recipe, target)
    donor = open_model(recipe, recipe.donor)
    like = written_like(recipe, donor)
    parents = parents_of(recipe, progress)
    is_finetuned = isinstance(recipe.options, FinetuneOptions)
    if is_finetuned:
        result = merge_finetuned(recipe, named, progress)
        result = _with_seed(result, recipe)
    else:
        result = merge_networks(path, recipe, named, doing, journal)
    text = report(result)
    filling = None
    if is_finetuned and is_lazy(result.variables) and isinstance(target, Path):
        filling = filling_of(recipe, journal, target, memory, progress)
    writing = Writing(recipe, donor, like, overwrite, filling, parents)
    write_networks(writing, result, places, text)
    kept = journal or filling
    if kept and is_first():
        shutil.rmtree(kept.folder, ignore_errors=True)
    return target, text


def merge_networks(
    path: AnyPath,
    recipe: Recipe,
    named: Mapping[str, Any],
    doing: Doing,
    journal: Journal | None = None,
) -> MergeResult:
    """Merge networks that are matched, as a recipe says, and save nothing.

    Args:
        path: the recipe's file, named in errors.
        recipe: the recipe.
        named: from `resolved`, of `apply_fn`, `batches` and the recipe's functions.
        doing: how.
        journal: where the steps of matching are kept; None for nowhere.

    Returns:
        The merge.

    Raises:
        ValueError: if something in the recipe, a checkpoint or the models is wrong.
    """
    models, batches, budget = _given(
        recipe, named["batches"], doing.memory, doing.progress
    )
    written = None
    if recipe.spec is not None:
        functions = named["apply_fn"], named["batches"]
        written = spec_by(path, recipe, *functions, models[0])
    result = merge_with(
        _options(recipe, named, is_lazy(models)),
        Inputs(named["apply_fn"], models, batches, written),
        key=jax.random.key(recipe.seed),
        budget=budget,
        journal=journal,
        progress=doing.progress,
    )
    return _with_seed(result, recipe)


def _with_seed(result: MergeResult, recipe: Recipe) -> MergeResult:
    """Return a merge whose record has the seed of its recipe."""
    return dataclasses.replace(result, recipe={**result.recipe, "seed": recipe.seed})


def _given(
    recipe: Recipe,
    batches: Iterable[PyTree],
    memory: int | None,
    progress: Progress | None,
) -> tuple[list[PyTree], Iterable[PyTree], int | None]:
    """Return models and batches, and what memory is left for statistics.

    They are spread over all processes if there are several, in one pass: what memory
    is left need not be the same in all.
    """
    if jax.process_count() == 1:
        wanted = room() if memory is None else memory
        models = load_models(recipe, wanted, progress)
        return models, batches, left_for_statistics(models, wanted)
    mesh = mesh_of_all()
    return spread_models(recipe, mesh, progress), Spread(batches, mesh), None


def _options(recipe: Recipe, named: Mapping[str, Any], on_disk: bool) -> MergeOptions:
    """Return the options of a merge, with what only its batches and models tell."""
    options, batches = options_of(recipe, named), named["batches"]
    reads = options.refit or options.held_out is not None
    if reads and isinstance(batches, Chained):
        options = dataclasses.replace(options, owners=tuple(batches.owners()))
    return dataclasses.replace(options, check=is_checked(recipe) or not on_disk)


def is_checked(recipe: Recipe) -> bool:
    """Whether the spec is checked on a model that has no room in memory.

    Args:
        recipe: the recipe.
    """
    options = recipe.options
    assert isinstance(options, MergeOptions)
    reads = any(row.activations for row in options.rows)
    return reads or recipe.spec is not None


def _journal(recipe: Recipe, output: AnyPath) -> Journal | None:
    """Return the journal of merges of these models to an output, if one is kept."""
    if is_url(output):
        return None
    folder = Path(output.with_name(f".{output.name}.jmudsc-journal"))
    if jax.process_count() > 1 and not isinstance(recipe.options, FinetuneOptions):
        if folder.is_dir() and is_first():
            _log.warning(
                "%s: a merge by one process left its steps here. Several processes "
                "neither take up nor keep any.",
                folder,
            )
        return None
    prints = [fingerprint_at(recipe, source) for source in recipe.sources]
    if not all(prints):
        return None
    if folder.is_dir() and is_first():
        _log.warning(
            "%s: an interrupted merge left its steps here. Those of the same models "
            "are taken up.",
            folder,
        )
    machine = jax.default_backend(), jax.config.read("jax_enable_x64")
    decisive = recipe.sources, prints, versions(), machine
    return Journal(folder, digest_of([repr(decisive).encode()]))


def spec_of(path: AnyPath, progress: Progress | None = None) -> PermutationSpec:
    """Return the permutation spec by which a recipe merges, derived or read.

    Args:
        path: the recipe, a YAML file.
        progress: as for `merge_recipe`.

    Returns:
        The spec.

    Raises:
        FileNotFoundError: if the recipe, its first checkpoint or its spec is not there.
        ValueError: if something in the recipe, the checkpoint or the spec is wrong.
    """
    recipe = read_recipe(path)
    named = resolved(recipe, ("apply_fn", "batches"))
    if missing := [key for key in ("apply_fn", "batches") if key not in named]:
        raise ValueError(
            f"{path}: expected apply_fn and batches, by which a spec is derived, got "
            f"no {' and no '.join(missing)}. Add them to the recipe."
        )
    variables = load_model(recipe, recipe.models[0], progress)
    spec = spec_by(path, recipe, named["apply_fn"], named["batches"], variables)
    options = recipe.options
    return freeze(spec, options.frozen if isinstance(options, MergeOptions) else ("*",))


def free_places(recipe: Recipe, overwrite: bool) -> list[AnyPath]:
    """Return where to write each network, once all places are known to be free.

    Args:
        recipe: the recipe.
        overwrite: whether an earlier merge may be replaced.

    Returns:
        One path per network.

    Raises:
        FileExistsError: if something is there that may not be replaced.
        ValueError: if nothing can be saved there.
    """
    places = [check_free(path, overwrite) for path in outputs(recipe)]
    sources = [recipe.place(source.path) for source in recipe.sources]
    parents = [path for path in sources if _absolute(path) in places]
    if parents:
        raise FileExistsError(
            f"{parents[0]}: expected two places for the output and for a model, got "
            "this one for both. Choose another output."
        )
    folder = places[0].parent
    if recipe.options.separate and (folder / "_METADATA").exists():
        raise FileExistsError(
            f"{folder}: expected a folder for one checkpoint per model, as separate "
            "asks, got a checkpoint. Remove it or choose another output."
        )
    return places


def _absolute(path: str) -> AnyPath:
    return path_of(path) if is_url(path) else Path(path).expanduser().resolve()
