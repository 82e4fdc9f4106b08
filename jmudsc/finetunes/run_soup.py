"""Run soup: checkpoints of one training run, averaged from its directory."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jaxtyping import PyTree

from jmudsc.checkpoints.load import load, load_shapes
from jmudsc.checkpoints.urls import AnyPath, is_url, path_of
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.merging.result import MergeResult
from jmudsc.paths import listed

_STEP = re.compile(r"^(?:.*[^0-9])?(\d+)$")
_WHERE = "soup"
# What belongs to a model, by the last word of its path in a checkpoint.
_KEPT = ("params", "batch_stats")


def soup_of_run(
    run: str | os.PathLike[str],
    *,
    last: int | None = None,
    steps: Sequence[int] | None = None,
    weights: str = "mean",
    decay: float | str | None = None,
    subtree: str | Sequence[str] | None = None,
    score: Callable[[PyTree], float] | None = None,
) -> MergeResult:
    """Average checkpoints of one run.

    From every checkpoint `params` and, if there are any, `batch_stats` are taken, never
    the state of an optimizer; they stay on disk until the result is saved or read. The
    running statistics are averaged: set them anew with `reset_batch_stats`.

    Args:
        run: the directory of the run, with a directory for each step, as a
            `CheckpointManager` makes it; or the URL of one.
        last: how many of the last steps to take.
        steps: which steps to take, instead; all if neither is given.
        weights: `mean`, `ema` or `wsm`, the shares of the method `window`, or `greedy`
            to keep those that make `score` better.
        decay: as for `window`.
        subtree: which parts of the checkpoints to take; None to look for `params` and
            `batch_stats`, in the tree itself or one level below.
        score: for `greedy`, larger for better variables.

    Returns:
        The variables, and in its recipe the steps they are from.

    Raises:
        FileNotFoundError: if there is no such directory.
        ValueError: if it has no such steps, no parameters are found, or an option does
            not fit.
    """
    place = path_of(run) if is_url(run) else Path(run).expanduser().resolve()
    found = steps_of(place)
    chosen = _chosen(place, sorted(found), last, steps)
    parts = _parts(place, found[chosen[0]]) if subtree is None else subtree
    models = [load(found[step], parts, lazy=True) for step in chosen]
    if weights == "greedy":
        result = merge_finetunes(models, method="greedy_soup", score=score)
    else:
        options = {"weights": weights, "decay": decay}
        result = merge_finetunes(models, method="window", **options)
    return replace(result, recipe={**result.recipe, "steps": chosen})


def read_decay(text: str | None) -> float | str | None:
    """Read a decay from the command line: a number, or the name of one."""
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


def steps_of(run: AnyPath) -> dict[int, AnyPath]:
    """Return the directory of every finished step of a run.

    Args:
        run: the directory of the run.

    Raises:
        FileNotFoundError: if there is no such directory.
        ValueError: if there is no step in it.
    """
    if not run.is_dir():
        raise FileNotFoundError(
            f"{_WHERE}: expected the directory of a run, got {run}, which is none. "
            "Check the path."
        )
    found = {
        int(match[1]): folder
        for folder in run.iterdir()
        if folder.is_dir() and (match := _STEP.match(folder.name))
    }
    if not found:
        names = listed(sorted(folder.name for folder in run.iterdir()))
        raise ValueError(
            f"{_WHERE}: expected directories named by steps in {run}, got:\n{names}\n"
            "Pass the directory that the CheckpointManager was given."
        )
    return found


def _chosen(
    run: AnyPath, known: list[int], last: int | None, steps: Sequence[int] | None
) -> list[int]:
    """Return the steps that are asked for, the oldest first."""
    if last is not None and steps is not None:
        raise ValueError(
            f"{_WHERE}: expected last or steps, got both. Leave out one of them."
        )
    if steps is not None:
        missing = [str(step) for step in steps if step not in known]
        if missing or not list(steps) or len(set(steps)) < len(steps):
            raise ValueError(
                f"{_WHERE}: expected different ones of the steps {known} in {run}, got "
                f"{list(steps)}. Choose among those there are."
            )
        return sorted(steps)
    if last is not None and not 1 <= last <= len(known):
        raise ValueError(
            f"{_WHERE}: expected last to be from 1 to {len(known)}, the number of "
            f"steps in {run}, got {last}. Take fewer."
        )
    return known if last is None else known[-last:]


def _parts(run: AnyPath, step: AnyPath) -> tuple[str, ...]:
    """Return the subtrees of a checkpoint that are of its model."""
    tree = load_shapes(step)
    for name, part in {"": tree, **(tree if isinstance(tree, Mapping) else {})}.items():
        if isinstance(part, Mapping) and "params" in part:
            before = f"{name}/" if name else ""
            return tuple(f"{before}{kept}" for kept in _KEPT if part.get(kept))
    names = list(tree) if isinstance(tree, Mapping) else [type(tree).__name__]
    raise ValueError(
        f"{_WHERE}: expected params in the checkpoints of {run}, got {names}. Pass "
        "subtree= with the path of the parameters."
    )
