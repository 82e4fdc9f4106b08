"""Evaluate: measure merged networks and their parents as a recipe says."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import PyTree

from jmudsc.checkpoints.urls import AnyPath
from jmudsc.landscape.losses import Loss, measure_by, real_number, with_sum
from jmudsc.progress import Progress
from jmudsc.recipes.reader import read_recipe
from jmudsc.recipes.report import table
from jmudsc.recipes.resolve import load_merged, load_model, losses_of, resolved


def evaluate_recipe(
    path: AnyPath, checkpoint: str | None = None, progress: Progress | None = None
) -> str:
    """Measure the parents of a recipe, their base, and what they were merged to.

    Args:
        path: the recipe, a YAML file with `losses`, `score` or both.
        checkpoint: a merged network, or with `separate` a folder of one for each model;
            None for the recipe's output.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        A table in Markdown, a row for each network. Where leaves are separate, a row
        for all parents, each at its own task, and one for all merged networks.

    Raises:
        FileNotFoundError: if the recipe or a checkpoint is not there.
        ValueError: if the recipe does not say how to measure, something in it is wrong,
            or a value is not a number.
    """
    recipe = read_recipe(path)
    losses: Mapping[str, Loss] = {}
    if recipe.losses is not None or "score" not in recipe.functions:
        losses = losses_of(path, recipe, "evaluate")
    score = resolved(recipe, ("score",)).get("score")
    merged = load_merged(path, recipe, progress, checkpoint)
    parents = [load_model(recipe, source, progress) for source in recipe.models]
    if recipe.options.separate:
        networks = {"parents": parents, "merged": merged}
    else:
        letters = [f"parent {chr(65 + n)}" for n in range(len(parents))]
        base = {} if recipe.base is None else {"base": recipe.base}
        first = {name: load_model(recipe, x, progress) for name, x in base.items()}
        named = dict(zip(letters, parents, strict=True))
        networks = {**first, **named, "merged": merged[0]}
    rows = {name: _scores(losses, score, tree) for name, tree in networks.items()}
    header = ["network", *rows["merged"]]
    cells = [[n, *(f"{x:.4f}" for x in row.values())] for n, row in rows.items()]
    return table(header, cells)


def _scores(
    losses: Mapping[str, Loss], score: Callable[[Any], Any] | None, network: PyTree
) -> dict[str, float]:
    measured = {}
    if losses:
        measured = with_sum(measure_by(losses)([network], [1.0]))
        measured = {f"loss of {task}": value for task, value in measured.items()}
    return measured | ({"score": real_number("score", score(network))} if score else {})
