"""Reader: a recipe from its YAML file, or all that is wrong with it."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jmudsc.checkpoints.urls import folder_of, is_url, path_of
from jmudsc.merging.option_values import quoted
from jmudsc.paths import plural
from jmudsc.recipes.families import Family, family_for, Options
from jmudsc.recipes.import_path import ImportPath, read_import_path, read_model
from jmudsc.recipes.mergekit import is_mergekit, translated
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import read_sources, Source
from jmudsc.recipes.yaml_keys import (
    path_text,
    read_keys,
    read_yaml,
    Reader,
    refuse,
)
from jmudsc.recipes.yaml_text import decoded

_log = logging.getLogger(__name__)


def read_recipe(
    path: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        path: a YAML file; a configuration of mergekit is translated.
        output: where to write, in the place of what it says.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML mapping, or listing every key that is unknown,
            missing or has a wrong value.
    """
    place = path_of(path)
    content, mergekit = read_content(place, output)
    if mergekit is not None and "output" not in content:
        raise ValueError(
            f"{place}: expected to be told where to write, got a configuration of "
            "mergekit, which does not say it. Pass --output DIRECTORY."
        )
    recipe = parse_recipe(content, str(place))
    return dataclasses.replace(recipe, folder=folder_of(place), mergekit=mergekit)


def read_content(
    path: str | os.PathLike[str], output: str | os.PathLike[str] | None = None
) -> tuple[Any, str | None]:
    """Read the keys of a recipe and their values, and check none of them.

    Args:
        path: as for `read_recipe`.
        output: as for `read_recipe`.

    Returns:
        The keys and values, and the text of the configuration of mergekit that they
        are from, None if they are from none.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML, or listing all of a configuration of mergekit
            that cannot be translated.
    """
    place, text = path_of(path), None
    content = read_yaml(place, "a recipe")
    if is_mergekit(content):
        text = decoded(str(place), place.read_bytes())
        found = translated(content, str(place), folder_of(place))
        for note in found.notes:
            _log.warning("%s: %s", place, note)
        content = found.content
    if output is not None and isinstance(content, dict):
        where = os.fspath(output)
        where = where if is_url(where) else os.path.abspath(where)
        content = {**content, "output": where}
    return content, text


def parse_recipe(content: Any, where: str = "recipe") -> Recipe:
    """Build a recipe from plain values.

    Args:
        content: the keys of a recipe and their values.
        where: what to call it in an error.

    Returns:
        The recipe.

    Raises:
        ValueError: listing every key that is unknown, missing or has a wrong value.
    """
    recipe, problems = parse_keys(content, where)
    refuse(where, problems)
    return recipe


def parse_keys(
    content: Any, where: str = "recipe", optional: Sequence[str] = ()
) -> tuple[Recipe, list[str]]:
    """Read what can be read of a recipe.

    Args:
        content: the keys of a recipe and their values.
        where: what to call it in an error.
        optional: keys that a recipe must have, which may be missing here.

    Returns:
        A recipe of the keys that are right, with no models, no output or import paths
        to nothing in the place of others that it needs; and what is wrong with those.

    Raises:
        ValueError: if the content is no mapping.
    """
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(
            f"{where}: expected a mapping of keys to values, got a {kind}. Start with "
            '"models:".'
        )
    family = family_for(content)
    content, problems = _with_functions(content)
    required = [key for key in family.required if key not in optional]
    values, found = read_keys(content, keys_of(family), required)
    problems += found
    options = family.options(values)
    functions = {key: values[key] for key in values if key in family.functions}
    there = dict.fromkeys(functions, lambda *_: None)  # what they do is seen later
    given = family.with_functions(options, there)
    problems += _contradictions(values, family, given)
    nothing = {"models": (), "output": ""}
    nothing |= {"apply_fn": ImportPath("")} if "apply_fn" in family.required else {}
    own = {key: values[key] for key in values if key in _RECIPE_KEYS}
    recipe = Recipe(
        **{**nothing, **own},
        options=options,
        functions=functions,
    )
    return recipe, problems


def _with_functions(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Put what an adapter makes of a model in the place of the key `model`."""
    content = dict(content)
    if "model" not in content or isinstance(content["model"], list):
        return content, []  # a list is of models
    model = content.pop("model")
    beside = [key for key in _OF_MODEL if key in content]
    problems = []
    if beside:
        problems.append(
            f"model: expected it in the place of {' and '.join(_OF_MODEL)}, got "
            f"{' and '.join(beside)} too. Leave out one of them."
        )
    try:
        read_model(model)
    except ValueError as error:
        return {"apply_fn": "a:model", **content}, [*problems, f"model: {error}"]
    return {**dict.fromkeys(_OF_MODEL, model), **content}, problems


def keys_of(family: Family) -> dict[str, Reader]:
    """Return what reads each key that the recipes of a family may have."""
    models = partial(read_sources, fewest=family.fewest)
    return {**SHARED_KEYS, "models": models, **family.keys}


def _contradictions(
    values: Mapping[str, Any], family: Family, options: Options
) -> list[str]:
    """Say what keys that are right by themselves say of each other."""
    models, losses = values.get("models"), values.get("losses")
    if not models:
        return []
    problems = [_batches_problem(models, "batches" in values, family.needs_batches)]
    problems += family.problems(options, len(models))
    if losses and options.separate and len(losses) != len(models):
        problems.append(
            f"losses: expected {len(models)} tasks, one for each model since leaves "
            f"are separate, got {len(losses)}. Give every model its task."
        )
    return [problem for problem in problems if problem]


def _batches_problem(
    models: Sequence[Source], shared: bool, needed: bool
) -> str | None:
    """Say what is wrong with where batches are given, if anything is."""
    without = [str(n) for n, source in enumerate(models) if source.batches is None]
    if shared and len(without) < len(models):
        return (
            "batches: expected them in one place, got them here and with "
            f"{plural(len(models) - len(without), 'model')}. Leave out one of the two."
        )
    if not shared and len(without) == len(models):
        none = "batches: expected batches, got none. Name them here, or with each of "
        return f"{none}the models." if needed else None
    if not shared and without:
        return (
            f"batches: expected them with every model, got none with "
            f"{'model' if len(without) == 1 else 'models'} {', '.join(without)}. Name "
            "them with all models, or once for all."
        )
    return None


def _losses(value: Any) -> dict[str, ImportPath]:
    named = value
    if isinstance(value, list):
        named = {f"task {chr(65 + n)}": loss for n, loss in enumerate(value)}
    if not isinstance(named, dict) or not named or not all(map(_is_name, named)):
        raise ValueError(
            "expected a mapping of tasks to import paths, or a list of import paths, "
            f'got {quoted(value)}. A task may have any name but "sum".'
        )
    return {task: read_import_path(loss) for task, loss in named.items()}


def _is_name(task: Any) -> bool:
    return isinstance(task, str) and task not in ("", "sum")


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise ValueError(
            f"expected a whole number in [0, 2**32), got {quoted(value)}. Leave it out "
            "for 0."
        )
    return value


# Of each key that all recipes have, what reads it.
SHARED_KEYS: Mapping[str, Reader] = {
    "models": read_sources,
    "batches": read_import_path,
    "seed": _seed,
    "losses": _losses,
    "output": path_text,
}
# What the key `model` stands for.
_OF_MODEL = ("apply_fn", "update_fn")
# Those keys whose values a recipe has itself, not among its options or functions.
_RECIPE_KEYS = {
    *SHARED_KEYS,
    *("apply_fn", "base", "dtype", "shard_size", "space", "spec", "tokenizer"),
}
