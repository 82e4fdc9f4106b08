"""Resolve: fetch what a recipe names: the models, the functions and the spec."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from jmudsc.batches import Chained
from jmudsc.checkpoints.formats import ending_of
from jmudsc.checkpoints.load import load, open_variables, Stored
from jmudsc.checkpoints.urls import AnyPath, path_of
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.derivation.read_spec import read_spec
from jmudsc.landscape.losses import Loss
from jmudsc.lazy import to_device
from jmudsc.merging.memory_budget import fits
from jmudsc.paths import listed, plural
from jmudsc.progress import Progress
from jmudsc.recipes.import_path import adapted, called_if_function, ImportPath, resolve
from jmudsc.recipes.lora_models import check_base, folded, is_adapter
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import Source
from jmudsc.recipes.yaml_text import decoded
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn

_BATCHES = "batches"


def load_model(
    recipe: Recipe, source: Source, progress: Progress | None, *, lazy: bool = False
) -> PyTree:
    """Load the variables of one model of a recipe, or leave them on disk."""
    if progress:
        progress(f"loading {source.path}", 0, None)
    if is_adapter(recipe, source):
        check_base(recipe, source)
        assert recipe.base is not None
        base = load_model(recipe, recipe.base, None, lazy=True)
        tree = folded(recipe, source, base, wide=lazy)
        return tree if lazy else to_device(tree)
    return load(
        recipe.place(source.path),
        source.subtree,
        rename=dict(source.rename),
        separator=source.separator,
        lazy=lazy,
    )


def open_model(recipe: Recipe, source: Source) -> Stored:
    """Find the variables of one model of a recipe, and how they are stored."""
    if is_adapter(recipe, source):  # the result is stored like it
        check_base(recipe, source)
    return open_variables(
        recipe.place(source.path),
        source.subtree,
        rename=dict(source.rename),
        separator=source.separator,
    )


def load_models(recipe: Recipe, memory: int, progress: Progress | None) -> list[PyTree]:
    """Load the variables of all models of a recipe, if there is room for them.

    Args:
        recipe: the recipe.
        memory: bytes that the models and the merged one may take together.
        progress: called with the stage.

    Returns:
        One tree for each model; of lazy arrays if all would take more.
    """
    models = lazy_models(recipe, recipe.models, progress)
    if not fits(models, memory):
        return models
    return [to_device(model) for model in models]


def lazy_models(
    recipe: Recipe, sources: Sequence[Source], progress: Progress | None
) -> list[PyTree]:
    """Open the variables of some models of a recipe, and leave them on disk."""
    return [load_model(recipe, x, progress, lazy=True) for x in sources]


def outputs(recipe: Recipe, output: str | None = None) -> list[str]:
    """Return where a recipe writes each network.

    Args:
        recipe: the recipe.
        output: in the place of its own output.

    Returns:
        One path; with `separate` one per model, in a folder that is called as the
        output is without its ending: `out/model-0`, `out/model-0.npz`.
    """
    output = recipe.place(recipe.output) if output is None else output
    if not recipe.options.separate:
        return [output]
    ending = ending_of(output)
    folder = output.removesuffix(ending)
    return [f"{folder}/model-{n}{ending}" for n in range(len(recipe.models))]


def resolved(recipe: Recipe, keys: Sequence[str]) -> Mapping[str, Any]:
    """Import everything that some keys name.

    Args:
        recipe: the recipe.
        keys: whose values are import paths.

    Returns:
        For every key that the recipe has, what it names. Where every model has batches
        of its own, `batches` are those of all, chained.

    Raises:
        ValueError: listing all that cannot be imported.
    """
    named = _imported(recipe, _import_paths(recipe, keys))
    has_own = any(source.batches is not None for source in recipe.models)
    if "batches" in keys and recipe.batches is None and has_own:
        numbers = range(len(recipe.models))
        tasks = tuple(named.pop(_own_batches(number)) for number in numbers)
        named["batches"] = Chained(tasks)
    return named


def options_of(recipe: Recipe, named: Mapping[str, Any]) -> Any:
    """Return the options of a recipe, with the functions that it names.

    Args:
        recipe: the recipe.
        named: from `resolved`, of the keys `recipe.functions` at least.
    """
    functions = {key: named[key] for key in recipe.functions}
    return recipe.family.with_functions(recipe.options, functions)


def losses_of(path: AnyPath, recipe: Recipe, wanted_by: str) -> dict[str, Loss]:
    """Import the losses of a recipe.

    Args:
        path: the recipe's file, named in the error.
        recipe: the recipe.
        wanted_by: the command, named in the error.

    Returns:
        Task -> loss; where leaves are separate, of a list with the variables of every
        model, else of variables.

    Raises:
        ValueError: if the recipe has no losses, or they cannot be imported.
    """
    if recipe.losses is None:
        raise ValueError(
            f"{path}: expected losses, by which {wanted_by} measures, got none. Add "
            "losses: {TASK: module:name}, functions (variables) -> float."
        )
    import_paths = {f"losses: {task}": path for task, path in recipe.losses.items()}
    losses = _imported(recipe, import_paths).values()
    named = dict(zip(recipe.losses, losses, strict=True))
    if not recipe.options.separate:
        return named
    return {
        task: lambda networks, loss=loss, number=number: loss(networks[number])
        for number, (task, loss) in enumerate(named.items())
    }


def load_merged(
    path: AnyPath,
    recipe: Recipe,
    progress: Progress | None,
    checkpoint: str | None = None,
) -> list[PyTree]:
    """Load what a recipe was merged to.

    Args:
        path: the recipe's file, named in the error.
        recipe: the recipe.
        progress: called with the stage.
        checkpoint: to load instead of the recipe's output.

    Returns:
        The variables of the merged network; where leaves are separate, of one network
        for every model.

    Raises:
        FileNotFoundError: if it was not merged yet.
    """
    where = outputs(recipe, checkpoint)
    output = os.path.dirname(where[0]) if recipe.options.separate else where[0]
    if checkpoint is None and not path_of(output).exists():
        raise FileNotFoundError(
            f"{output}: expected a merged network, got no such file. Run jmudsc merge "
            f"{path} first."
        )
    if progress:
        progress(f"loading {output}", 0, None)
    return [load(place) for place in where]


def spec_by(
    path: AnyPath, recipe: Recipe, apply_fn: ApplyFn, batches: Any, variables: PyTree
) -> PermutationSpec:
    """Derive the spec of a model, or read it where the recipe says.

    Args:
        path: the recipe's file, named in the error.
        recipe: the recipe.
        apply_fn: `(variables, batch) -> outputs`.
        batches: of which the first is read.
        variables: of the model.

    Returns:
        The spec, without regard to `frozen`.

    Raises:
        FileNotFoundError: if the file of the spec is not there.
        ValueError: if there is no batch, or the spec is wrong.
    """
    for batch in batches:
        traced = apply_fn, variables, batch
        if recipe.spec is None:
            return infer_spec(*traced)
        return read_spec(_spec_text(path_of(recipe.place(recipe.spec))), *traced)
    names = [each.name for each in _import_paths(recipe, ("batches",)).values()]
    raise ValueError(
        f"{path}: expected at least one batch, got none. Correct what "
        f"{', '.join(names)} returns."
    )


def _imported(recipe: Recipe, import_paths: Mapping[str, ImportPath]) -> dict[str, Any]:
    """Import all that is named, or list all that cannot be."""
    named, problems = {}, []
    for key, path in import_paths.items():
        try:
            made = resolve(path, recipe.folder)
            if key.startswith(_BATCHES):
                made = called_if_function(path, made)
            named[key] = made if path.adapter is None else adapted(path, made, key)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ValueError(
            f"recipe: correct {plural(len(problems), 'import path')}:\n"
            f"{listed(problems)}"
        )
    return named


def _import_paths(recipe: Recipe, keys: Sequence[str]) -> dict[str, ImportPath]:
    """Return the import paths of some keys; `batches` of every model by itself."""
    given = recipe.import_paths
    import_paths = {key: given[key] for key in keys if key in given}
    if "batches" in keys:
        for number, source in enumerate(recipe.models):
            if source.batches is not None:
                import_paths[_own_batches(number)] = source.batches
    return import_paths


def _own_batches(model: int) -> str:
    return f"{_BATCHES} of model {model}"


def _spec_text(file: AnyPath) -> str:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: expected a spec, got no such file. Write one with jmudsc spec "
            "RECIPE."
        )
    return decoded(str(file), file.read_bytes())
