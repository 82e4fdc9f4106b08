"""Landscape: measure and draw the loss landscape of what a recipe merges."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jmudsc.checkpoints.atomic import building
from jmudsc.checkpoints.urls import AnyPath, is_url
from jmudsc.landscape import figures
from jmudsc.landscape.losses import (
    barrier,
    Loss,
    losses_between,
    losses_on_plane,
    measure_by,
    with_sum,
)
from jmudsc.landscape.plane import Plane, window
from jmudsc.merging.options import MergeOptions
from jmudsc.progress import Progress, silent
from jmudsc.recipes.landscape_finetuned import finetuned_networks
from jmudsc.recipes.landscape_networks import landscape_networks, LandscapeNetworks
from jmudsc.recipes.reader import read_recipe
from jmudsc.recipes.resolve import losses_of
from jmudsc.recipes.schema import Recipe
from jmudsc.tables import table


@dataclass(frozen=True, eq=False)
class Landscape:
    """Losses on the plane through the networks of a recipe, and between its parents.

    Attributes:
        plane: the plane, with the place of every network.
        xs: x of the columns of the grid.
        ys: y of its rows.
        grid: task -> losses on the plane, one row per y.
        steps: the points of a line, from 0 at parent A to 1 at parent B.
        lines: name of a line -> task -> losses at the steps.
        own: name of a network -> task -> its loss, nothing reset.
    """

    plane: Plane
    xs: np.ndarray
    ys: np.ndarray
    grid: Mapping[str, np.ndarray]
    steps: np.ndarray
    lines: Mapping[str, Mapping[str, np.ndarray]]
    own: Mapping[str, Mapping[str, float]]

    @property
    def barriers(self) -> dict[str, dict[str, float]]:
        """Of every line and task, and of the sum of the tasks, the barrier."""
        return {
            name: {t: barrier(x, self.steps) for t, x in with_sum(line).items()}
            for name, line in self.lines.items()
        }


def draw_landscape(
    path: AnyPath,
    *,
    out: Path | None = None,
    points: int = 21,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, str]:
    """Measure and draw the landscape of a recipe that was merged.

    The plane goes through the first two parents, in one order of units, and the merged
    network; where that is on their line (the average of aligned parents is half way),
    through the second parent in its other order too. Fine-tunes are taken as they are,
    with their base; of those on one line, through a random direction too. Where the
    recipe has an `update_fn`, running statistics are reset at every point.

    Args:
        path: the recipe, a YAML file with `losses`.
        out: a directory to make; beside the recipe's output if None.
        points: of the plane along each axis, and of the line, at least 2.
        overwrite: replace an earlier landscape there.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The directory with `plane.png`, `line.png` and all values in `landscape.json`,
        and tables of them in Markdown.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if the recipe or a checkpoint is not there.
        ValueError: if something in the recipe is wrong, it was merged by another
            method, or matplotlib is missing.
    """
    figures.check_installed()
    if points < 2:
        raise ValueError(
            f"landscape: expected 2 points or more along each axis, got {points}. Pass "
            "a larger --points."
        )
    recipe, say = read_recipe(path), progress or silent
    losses = losses_of(path, recipe, "landscape")
    target = _free(out or _beside(recipe), overwrite)
    is_matched = isinstance(recipe.options, MergeOptions)
    load_networks = landscape_networks if is_matched else finetuned_networks
    networks = load_networks(path, recipe, say)
    measured = _measured(networks, losses, points, say)
    _write(measured, target, overwrite)
    return target, _tables(measured)


def _measured(
    networks: LandscapeNetworks, losses: Mapping[str, Loss], points: int, say: Progress
) -> Landscape:
    measure = measure_by(losses, networks.settle)
    xs, ys = window(networks.plane, points)
    grid = losses_on_plane(measure, networks.plane, xs, ys, say)
    steps = np.linspace(0, 1, points)
    lines = {
        name: losses_between(measure, *ends, steps, say)
        for name, ends in networks.lines.items()
    }
    as_is = measure_by(losses)
    own = {name: as_is([tree], [1.0]) for name, tree in networks.networks.items()}
    return Landscape(networks.plane, xs, ys, grid, steps, lines, own)


def _beside(recipe: Recipe) -> Path:
    where = recipe.place(f"{recipe.output}-landscape")
    if is_url(where):
        raise ValueError(
            f"landscape: expected a local directory to write to, got {where}, beside "
            "the recipe's output. Pass one with --out."
        )
    return Path(where)


def _free(out: Path, overwrite: bool) -> Path:
    """Return where to write, once it is known to be free."""
    target = out.expanduser().resolve()
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target}: expected a new path, got one that exists. Choose another one "
            "with --out, or pass --overwrite."
        )
    if target.exists() and not (target / "landscape.json").exists():
        raise FileExistsError(
            f"{target}: expected an earlier landscape to overwrite, got something "
            "else. Choose another path with --out."
        )
    return target


def _write(measured: Landscape, target: Path, overwrite: bool) -> None:
    xs, ys, steps = measured.xs, measured.ys, measured.steps
    plane = figures.draw_plane(measured.plane, xs, ys, measured.grid, measured.own)
    lines = figures.draw_lines(steps, measured.lines, ("parent A", "parent B"))
    text = json.dumps(_plain(_contents(measured)), indent=1, allow_nan=False)
    with building(target, overwrite) as temporary:
        temporary.mkdir()
        (temporary / "plane.png").write_bytes(plane)
        (temporary / "line.png").write_bytes(lines)
        (temporary / "landscape.json").write_text(text + "\n")


def _contents(measured: Landscape) -> dict[str, Any]:
    """Return what is in `landscape.json`."""
    plane = measured.plane
    return {
        "networks": {
            name: {
                "place": plane.places[name],
                "off_plane": plane.distances[name],
                "losses": losses,
            }
            for name, losses in measured.own.items()
        },
        "corners": plane.corners,
        "plane": {"x": measured.xs, "y": measured.ys, "losses": measured.grid},
        "line": {
            "steps": measured.steps,
            "losses": measured.lines,
            "barriers": measured.barriers,
        },
    }


def _tables(measured: Landscape) -> str:
    """Write the losses and places of the networks, and the barriers of the lines."""
    plane, barriers = measured.plane, measured.barriers
    tasks = list(next(iter(barriers.values())))
    text = lambda value: f"{value:.4g}"
    rows = [
        [
            name,
            *(text(with_sum(losses)[task]) for task in tasks),
            *map(text, plane.places[name]),
            text(plane.distances[name]),
        ]
        for name, losses in measured.own.items()
    ]
    networks = table(["network", *tasks, "x", "y", "off the plane"], rows)
    heights = [[n, *(text(x[t]) for t in tasks)] for n, x in barriers.items()]
    return f"{networks}\n\n{table(['barrier, parent A to B', *tasks], heights)}"


def _plain(value: Any) -> Any:
    """Turn arrays into lists, and what is not finite into null."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value
    return float(value) if np.isfinite(value) else None
