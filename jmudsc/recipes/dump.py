"""Dump: a recipe as YAML that reads back as the same recipe."""

from typing import Any

import yaml

from jmudsc.checkpoints.hugging_face import SHARD_SIZE
from jmudsc.lora.merge_loras import FULL
from jmudsc.recipes.import_path import plain_import_path
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import plain_source, Source


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML that `read_recipe` reads back.

    Args:
        recipe: the recipe.

    Returns:
        The text.
    """
    base = {} if recipe.base is None else {"base": _plain_base(recipe.base)}
    content: dict[str, Any] = {
        **base,
        "models": [plain_source(source) for source in recipe.models],
    }
    for key, path in recipe.import_paths.items():
        content[key] = plain_import_path(path)
    content |= recipe.family.dumped(recipe.options)
    for key in ("dtype", "tokenizer"):
        if getattr(recipe, key) is not None:
            content[key] = getattr(recipe, key)
    if recipe.shard_size != SHARD_SIZE:
        content["shard_size"] = recipe.shard_size
    if recipe.space != FULL:
        content["space"] = recipe.space
    if recipe.spec is not None:
        content["spec"] = recipe.spec
    if recipe.losses is not None:
        plain = {task: plain_import_path(path) for task, path in recipe.losses.items()}
        content["losses"] = plain
    content |= {"seed": recipe.seed, "output": recipe.output}
    return yaml.safe_dump(content, sort_keys=False)


def _plain_base(base: Source) -> Any:
    """Write a base of which there is nothing but a path as that."""
    content = plain_source(base)
    return content["path"] if list(content) == ["path"] else content
