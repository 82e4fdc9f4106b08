"""Cook: do what a recipe says."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.chained import Chained
from jmudsc.checkpoints import check_free, load, save
from jmudsc.derive import infer_spec
from jmudsc.freeze import freeze
from jmudsc.handwritten import read_spec
from jmudsc.merge import merge
from jmudsc.paths import listed
from jmudsc.progress import Progress
from jmudsc.recipe import dump_recipe, read_recipe, Recipe, Reference, resolve, Source
from jmudsc.report import report
from jmudsc.spec import PermutationSpec


def cook(
    path: Path, *, overwrite: bool = False, progress: Progress | None = None
) -> tuple[Path, str]:
    """Merge the checkpoints of a recipe and save the result.

    Args:
        path: the recipe, a YAML file.
        overwrite: replace an earlier merge at the recipe's output.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The checkpoint written, and the report in Markdown; the report and the recipe
        are in the checkpoint too. With `separate`, the folder in which there is one
        checkpoint for each model, `model-0` and so on.

    Raises:
        FileNotFoundError: if the recipe, a checkpoint or its spec is not there.
        FileExistsError: if the output is.
        ValueError: if something in the recipe, a checkpoint or the models is wrong.
    """
    recipe = read_recipe(path)
    output = _free(recipe, overwrite)
    named = _resolved(recipe, ("apply_fn", "batches", "update_fn", "score"))
    batches, owners = named["batches"], None
    if recipe.refit and isinstance(batches, Chained):
        owners = batches.owners()
    models = [_load(recipe, source, progress) for source in recipe.models]
    written = None
    if recipe.spec is not None:
        written = _spec(path, recipe, named, models[0])
    result = merge(
        named["apply_fn"],
        models,
        batches,
        method=recipe.method,
        alpha=recipe.alpha,
        key=jax.random.key(recipe.seed),
        spec=written,
        frozen=recipe.frozen,
        separate=recipe.separate,
        weights=recipe.weights,
        reference=recipe.reference,
        score=named.get("score"),
        update_fn=named.get("update_fn"),
        refit=recipe.refit,
        ridge=recipe.ridge,
        owners=owners,
        repair=recipe.repair,
        progress=progress,
    )
    result = dataclasses.replace(result, recipe={**result.recipe, "seed": recipe.seed})
    text = report(result)
    notes = {"report.md": text, "recipe.yaml": dump_recipe(recipe)}
    for number, network in enumerate(result.networks):
        own = dataclasses.replace(result, variables=network)
        folder = output / f"model-{number}"
        save(folder, own, notes=notes, overwrite=overwrite)
    if not result.networks:
        save(output, result, notes=notes, overwrite=overwrite)
    return output, text


def spec_of(path: Path, progress: Progress | None = None) -> PermutationSpec:
    """Return the permutation spec by which a recipe merges, derived or read.

    Args:
        path: the recipe, a YAML file.
        progress: as for `cook`.

    Returns:
        The spec.

    Raises:
        FileNotFoundError: if the recipe, its first checkpoint or its spec is not there.
        ValueError: if something in the recipe, the checkpoint or the spec is wrong.
    """
    recipe = read_recipe(path)
    named = _resolved(recipe, ("apply_fn", "batches"))
    variables = _load(recipe, recipe.models[0], progress)
    return freeze(_spec(path, recipe, named, variables), recipe.frozen)


def _spec(
    path: Path, recipe: Recipe, named: Mapping[str, Any], variables: PyTree
) -> PermutationSpec:
    for batch in named["batches"]:
        traced = named["apply_fn"], variables, batch
        if recipe.spec is None:
            return infer_spec(*traced)
        return read_spec(_text(recipe.folder / recipe.spec), *traced)
    names = [reference.name for reference in _references(recipe, ("batches",)).values()]
    raise ValueError(
        f'{path}: "batches" has no batches, at least one is needed; correct what '
        f"{', '.join(names)} returns."
    )


def _free(recipe: Recipe, overwrite: bool) -> Path:
    """Return where to write, once all of it is known to be free."""
    output = _place(recipe, recipe.output)
    if not recipe.separate:
        return check_free(output, overwrite)
    folders = [f"{output}/model-{number}" for number in range(len(recipe.models))]
    first, *_ = [check_free(folder, overwrite) for folder in folders]
    if (first.parent / "_METADATA").exists():
        raise FileExistsError(
            f"{first.parent}: is a checkpoint, needed a folder for one checkpoint per "
            "model, as separate= asks; remove it or choose another output."
        )
    return first.parent


def _text(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: there is no such file, a spec is needed; write one with "
            "jmudsc spec RECIPE."
        )
    return file.read_text()


def _load(recipe: Recipe, source: Source, progress: Progress | None) -> PyTree:
    if progress:
        progress(f"loading {source.path}", 0, None)
    return load(_place(recipe, source.path), source.subtree)


def _place(recipe: Recipe, path: str) -> str:
    """Take a path relative to the recipe's folder, unless it is a URL."""
    return path if "://" in path else str(recipe.folder / path)


def _resolved(recipe: Recipe, keys: tuple[str, ...]) -> Mapping[str, Any]:
    """Import everything that some keys name, or list all that cannot be.

    Where every model has batches of its own, `batches` are those of all, chained.
    """
    named, problems = {}, []
    for key, reference in _references(recipe, keys).items():
        try:
            named[key] = resolve(reference, recipe.folder)
        except ValueError as error:
            problems.append(f'"{key}" {error}')
    if problems:
        raise ValueError(
            f"recipe: {len(problems)} references must be corrected:\n{listed(problems)}"
        )
    if "batches" in keys and recipe.batches is None:
        numbers = range(len(recipe.models))
        tasks = tuple(named.pop(_own_batches(number)) for number in numbers)
        named["batches"] = Chained(tasks)
    return named


def _references(recipe: Recipe, keys: tuple[str, ...]) -> dict[str, Reference]:
    """Return what some keys of a recipe name; `batches` of every model by itself."""
    found = {key: getattr(recipe, key) for key in keys}
    if "batches" in keys:
        own = enumerate(source.batches for source in recipe.models)
        found |= {_own_batches(number): reference for number, reference in own}
    return {key: reference for key, reference in found.items() if reference is not None}


def _own_batches(model: int) -> str:
    return f"batches of model {model}"
