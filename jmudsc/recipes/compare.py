"""Compare: many ways to merge what a recipe names, on one pass of statistics."""

from collections.abc import Sequence
from dataclasses import replace

from jmudsc.checkpoints.urls import AnyPath
from jmudsc.merging.contenders import BEST, contenders_to_try
from jmudsc.merging.held_out import HELD_OUT
from jmudsc.merging.options import MergeOptions
from jmudsc.recipes.merge import Doing, merge_networks, merge_read
from jmudsc.recipes.reader import read_recipe
from jmudsc.recipes.resolve import resolved
from jmudsc.recipes.schema import Recipe


def compare_recipe(
    path: AnyPath,
    methods: Sequence[str] = (),
    output: AnyPath | str | None = None,
    doing: Doing | None = None,
) -> tuple[AnyPath | None, str]:
    """Merge what a recipe names in several ways, and compare them in one table.

    The statistics of activations are gathered once, and every way to match is matched
    once. Parents, their plain average and their ensemble are rows too. The recipe's
    own `method`, `refit` and `repair` make no difference where methods are given.

    Args:
        path: the recipe, a YAML file.
        methods: the ways, each a method and its repairs, as in `"mudsc-zip + refit"`;
            those of method `best`, if none are given.
        output: where to save the best, as `merge_recipe` saves a merge; None to save
            nothing.
        doing: whether an earlier merge may be replaced, the memory, and the progress.

    Returns:
        The checkpoint written, None for none; and the comparison in Markdown.

    Raises:
        FileNotFoundError: if the recipe, a checkpoint or its spec is not there.
        FileExistsError: if the output is.
        ValueError: if something in the recipe, the methods, a checkpoint or the models
            is wrong, or nothing says what is better.
    """
    recipe = _trying(path, read_recipe(path, output), methods)
    doing = doing or Doing()
    if output is not None:
        return merge_read(path, recipe, doing)
    named = resolved(recipe, ("apply_fn", "batches", *recipe.functions))
    result = merge_networks(path, recipe, named, doing)
    return None, f"{result.comparison}\n"


def _trying(path: AnyPath, recipe: Recipe, methods: Sequence[str]) -> Recipe:
    """Return a recipe of the best of several methods."""
    options = recipe.options
    if not isinstance(options, MergeOptions):
        raise ValueError(
            f"{path}: expected networks that are matched, got fine-tunes, by method "
            f'"{options.method}". Merge them by each method and use jmudsc evaluate.'
        )
    try:
        among = contenders_to_try(list(methods))
    except ValueError as error:
        raise ValueError(f"--methods: {error}") from None
    share = HELD_OUT if options.held_out is None else options.held_out
    return replace(
        recipe, options=replace(options, method=BEST, among=among, held_out=share)
    )
