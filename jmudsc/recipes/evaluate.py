"""Evaluate: measure merged networks and their parents as a recipe says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import PyTree

from jmudsc.batches import Chained, first_batch
from jmudsc.checkpoints.urls import AnyPath
from jmudsc.landscape.losses import Loss, measure_by, real_number, with_sum
from jmudsc.merging.held_out import split
from jmudsc.merging.inputs import Inputs
from jmudsc.merging.judge import judge_of
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import prepare
from jmudsc.merging.report import verdict_lines
from jmudsc.progress import Progress
from jmudsc.recipes.reader import read_recipe
from jmudsc.recipes.resolve import (
    load_merged,
    load_model,
    losses_of,
    resolved,
    spec_by,
)
from jmudsc.recipes.schema import Recipe
from jmudsc.tables import table


def evaluate_recipe(
    path: AnyPath, checkpoint: str | None = None, progress: Progress | None = None
) -> str:
    """Measure the parents of a recipe, their base, and what they were merged to.

    Args:
        path: the recipe, a YAML file.
        checkpoint: a merged network, or with `separate` a folder of one for each model;
            None for the recipe's output.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        Markdown: the verdict on the batches that the merge was made without, and where
        the recipe has `losses` or `score`, a table of these with a row for each
        network. Where leaves are separate, a row for all parents, each at its own
        task, and one for all merged networks.

    Raises:
        FileNotFoundError: if the recipe or a checkpoint is not there.
        ValueError: if something in the recipe is wrong, or a value is not a number.
    """
    recipe = read_recipe(path)
    losses: Mapping[str, Loss] = {}
    judged = isinstance(recipe.options, MergeOptions)
    has_score = "score" in recipe.functions
    if recipe.losses is not None or not (judged or has_score):
        losses = losses_of(path, recipe, "evaluate")
    score = resolved(recipe, ("score",)).get("score")
    merged = load_merged(path, recipe, progress, checkpoint)
    parents = [load_model(recipe, source, progress) for source in recipe.models]
    parts = []
    if isinstance(recipe.options, MergeOptions):
        parts = [_verdict(path, recipe, recipe.options, parents, merged)]
    if losses or score or not parts:
        networks = _named(recipe, parents, merged, progress)
        rows = {name: _scores(losses, score, tree) for name, tree in networks.items()}
        header = ["network", *rows["merged"]]
        cells = [[n, *(f"{x:.4f}" for x in row.values())] for n, row in rows.items()]
        parts = [table(header, cells), *parts]
    return "\n\n".join(parts)


def _named(
    recipe: Recipe,
    parents: Sequence[PyTree],
    merged: Sequence[PyTree],
    progress: Progress | None,
) -> dict[str, PyTree]:
    """Name what is measured by losses and score."""
    if recipe.options.separate:
        return {"parents": parents, "merged": merged}
    letters = [f"parent {chr(65 + n)}" for n in range(len(parents))]
    base = {} if recipe.base is None else {"base": recipe.base}
    first = {name: load_model(recipe, x, progress) for name, x in base.items()}
    named = dict(zip(letters, parents, strict=True))
    return {**first, **named, "merged": merged[0]}


def _verdict(
    path: AnyPath,
    recipe: Recipe,
    given: MergeOptions,
    parents: Sequence[PyTree],
    merged: Sequence[PyTree],
) -> str:
    """Judge merged networks as `merge` does, on the batches that it held out."""
    named = resolved(recipe, ("apply_fn", "batches", *recipe.functions))
    functions = {key: named[key] for key in recipe.functions}
    options = replace(given, **functions)
    batches = named["batches"]
    owners = batches.owners() if isinstance(batches, Chained) else None
    parts = split(batches, options.held_out, owners)
    spec = None
    if recipe.spec is not None:
        spec = spec_by(path, recipe, named["apply_fn"], batches, parents[0])
    inputs = Inputs(named["apply_fn"], parents, batches, spec)
    first = first_batch("evaluate", batches)
    judge = judge_of(prepare("evaluate", inputs, first, options), parts)
    if isinstance(judge, str):
        return f"No verdict, since {judge}."
    return "\n".join(verdict_lines(judge.verdict(judge.measured(merged))))


def _scores(
    losses: Mapping[str, Loss], score: Callable[[Any], Any] | None, network: PyTree
) -> dict[str, float]:
    measured = {}
    if losses:
        measured = with_sum(measure_by(losses)([network], [1.0]))
        measured = {f"loss of {task}": value for task, value in measured.items()}
    return measured | ({"score": real_number("score", score(network))} if score else {})
