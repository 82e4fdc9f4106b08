"""Survey: measure and draw the loss landscape of what a recipe merges."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmudsc.checkpoints.atomic import building
from jmudsc.landscape import figures
from jmudsc.landscape.plane import (
    barrier,
    losses_between,
    losses_on_plane,
    measure_by,
    Plane,
    window,
    with_sum,
)
from jmudsc.progress import Progress, silent
from jmudsc.recipes.landscape_networks import set_up
from jmudsc.recipes.report import table
from jmudsc.recipes.resolve import losses_of, place
from jmudsc.recipes.schema import read_recipe


def survey(
    path: Path,
    *,
    out: Path | None = None,
    points: int = 21,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, str]:
    """Measure and draw the landscape of a recipe that was merged.

    The plane goes through the first two parents, in one order of units, and the merged
    network; where that is on their line (the average of aligned parents is half way),
    through the second parent in its other order too. Where the recipe has an
    `update_fn`, running statistics are reset at every point.

    Args:
        path: the recipe, a YAML file with `losses`.
        out: a directory to make; beside the recipe's output if None.
        points: of the plane along each axis, and of the line, at least 2.
        overwrite: replace an earlier landscape there.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The directory with `plane.png`, `line.png` and the numbers in `landscape.json`,
        and tables of them in Markdown.

    Raises:
        FileExistsError: if `out` exists.
        FileNotFoundError: if the recipe or a checkpoint is not there.
        ValueError: if something in the recipe is wrong, it was merged by another
            method, or matplotlib is missing.
    """
    figures.check_installed()
    if points < 2:
        raise ValueError(f"landscape: {points} points, at least 2 are needed.")
    recipe, say = read_recipe(path), progress or silent
    losses = losses_of(path, recipe, "landscape")
    target = _free(out or Path(place(recipe, f"{recipe.output}-landscape")), overwrite)
    scene = set_up(path, recipe, say)
    measure = measure_by(losses, scene.settle)
    xs, ys = window(scene.plane, points)
    grid = losses_on_plane(measure, scene.plane, xs, ys, say)
    steps = np.linspace(0, 1, points)
    lines = {
        name: losses_between(measure, *ends, steps, say)
        for name, ends in scene.lines.items()
    }
    asis = measure_by(losses)
    own = {name: asis([tree], [1.0]) for name, tree in scene.networks.items()}
    barriers = {
        name: {t: barrier(x, steps) for t, x in with_sum(line).items()}
        for name, line in lines.items()
    }
    numbers = {
        "networks": {
            name: {
                "place": scene.plane.places[name],
                "off_plane": scene.plane.distances[name],
                "losses": own[name],
            }
            for name in scene.networks
        },
        "corners": scene.plane.corners,
        "plane": {"x": xs, "y": ys, "losses": grid},
        "line": {"steps": steps, "losses": lines, "barriers": barriers},
    }
    with building(target, overwrite) as temporary:
        temporary.mkdir()
        plane = figures.draw_plane(scene.plane, xs, ys, grid, own)
        (temporary / "plane.png").write_bytes(plane)
        ends = "parent A", "parent B"
        (temporary / "line.png").write_bytes(figures.draw_lines(steps, lines, ends))
        text = json.dumps(_plain(numbers), indent=1, allow_nan=False)
        (temporary / "landscape.json").write_text(text + "\n")
    return target, _tables(scene.plane, own, barriers)


def _free(out: Path, overwrite: bool) -> Path:
    """Return where to write, once it is known to be free."""
    target = out.expanduser().resolve()
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target}: exists, needed a new path; choose another with --out or pass "
            "--overwrite."
        )
    if target.exists() and not (target / "landscape.json").exists():
        raise FileExistsError(
            f"{target}: exists and is no landscape, which --overwrite never replaces; "
            "choose another path."
        )
    return target


def _tables(
    plane: Plane,
    own: Mapping[str, Mapping[str, float]],
    barriers: Mapping[str, Mapping[str, float]],
) -> str:
    tasks = list(next(iter(barriers.values())))
    number = lambda value: f"{value:.4g}"
    rows = [
        [
            name,
            *(number(with_sum(own[name])[task]) for task in tasks),
            *map(number, plane.places[name]),
            number(plane.distances[name]),
        ]
        for name in own
    ]
    networks = table(["network", *tasks, "x", "y", "off the plane"], rows)
    heights = [[n, *(number(x[t]) for t in tasks)] for n, x in barriers.items()]
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
