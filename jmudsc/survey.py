"""Survey: draw the loss landscape of what a recipe merges.

Losses can be compared on one plane only if units are in one order. The parents are
permuted, never zipped: a zip averages units of one parent, and what is left of that
parent is not the parent any more. A network merged by a zip is no mean of permuted
parents, so it is aligned to them as one more network, and is a corner of the plane.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc import figures, paths
from jmudsc.atomic import building
from jmudsc.batch_stats import reset_batch_stats
from jmudsc.checkpoints import load_provenance
from jmudsc.combine import combine
from jmudsc.freeze import freeze
from jmudsc.ingredients import (
    load_merged,
    load_model,
    losses_of,
    place,
    resolved,
    spec_by,
)
from jmudsc.landscape import (
    barrier,
    losses_between,
    losses_on_plane,
    measure_by,
    Plane,
    plane_through,
    window,
    with_sum,
)
from jmudsc.match import match, uses_activations
from jmudsc.moments import collect
from jmudsc.permute import identity, random_permutations
from jmudsc.progress import counted, Progress, silent
from jmudsc.recipe import read_recipe, Recipe
from jmudsc.report import table
from jmudsc.separate import Parts, put_together, take_apart, trunks_of
from jmudsc.trunk import trunk_fn

Rows = Mapping[str, np.ndarray]


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
    scene = _set_up(path, recipe, say)
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


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is looked at.

    Attributes:
        networks: name -> variables, all in one order of units but those that say so.
        plane: through three of them.
        lines: name -> the two networks between which losses are measured.
        settle: resets running statistics; None for nothing.
    """

    networks: Mapping[str, PyTree]
    plane: Plane
    lines: Mapping[str, tuple[PyTree, PyTree]]
    settle: Any


def _set_up(path: Path, recipe: Recipe, say: Progress) -> _Scene:
    named = resolved(recipe, ("apply_fn", "batches", "update_fn"))
    parents = [load_model(recipe, source, say) for source in recipe.models]
    merged = load_merged(path, recipe, say)
    everything = [*parents, *merged]
    parts, trunks = _taken_apart(path, recipe, named, everything)
    rows, given = _rows(path, recipe, named, parts, trunks, say)
    own = slice(0, len(parents)), slice(len(parents), None)

    def network(number: int, rows: Rows) -> PyTree:
        """Bring one network to the order of some rows, and put heads onto its trunk."""
        its = {name: row[[number, number]] for name, row in rows.items()}
        trunk = combine(parts.spec, [trunks[number]] * 2, its)
        if not recipe.separate:
            return trunk
        shares = [1 / len(everything)] * len(everything)
        whole = put_together(parts, everything, trunk, rows, shares)
        return whole[own[number >= len(parents)]]

    # The average is taken in the order that the parents were given in.
    is_average = recipe.method == "average"
    here, there = (given, rows) if is_average else (rows, given)
    names = ["as given", "aligned"][:: 1 if is_average else -1]
    networks = {"parent A": network(0, here)}
    networks[f"parent B, {names[0]}"] = network(1, here)
    networks["merged"] = network(len(parents), here)
    for number in range(2, len(parents)):
        networks[f"parent {chr(65 + number)}, {names[0]}"] = network(number, here)
    networks[f"parent B, {names[1]}"] = network(1, there)
    ignored = _ignored(recipe, parts, networks["parent A"])
    try:
        plane = plane_through(networks, ignored)
    except ValueError:  # whatever their order, the parents are on one line
        key = jax.random.fold_in(jax.random.key(recipe.seed), 1)
        drawn = random_permutations(parts.spec, key)
        shuffled = {n: np.stack([drawn[n]] * len(row)) for n, row in rows.items()}
        networks["parent B, shuffled"] = network(1, shuffled)
        plane = plane_through(networks, ignored)
    lines = {
        "aligned": (network(0, rows), network(1, rows)),
        "as given": (network(0, given), network(1, given)),
    }
    return _Scene(networks, plane, lines, _settle(recipe, named))


def _taken_apart(
    path: Path, recipe: Recipe, named: Mapping[str, Any], everything: Sequence[PyTree]
) -> tuple[Parts, Sequence[PyTree]]:
    """Find the spec, and the trunks where some leaves are separate."""
    apply_fns, batches = named["apply_fn"], named["batches"]
    if not recipe.separate:
        spec = spec_by(path, recipe, apply_fns, batches, everything[0])
        spec = freeze(spec, recipe.frozen)
        return take_apart("landscape", [spec], everything, everything), everything
    count = len(recipe.models)
    functions = _per_model(apply_fns, count)
    specs = [
        spec_by(path, recipe, function, batches, model)
        for function, model in zip(functions, everything, strict=False)
    ]
    specs = [freeze(specs[0], recipe.frozen), *specs[1:]]
    trunks = trunks_of("landscape", everything, recipe.separate)
    return take_apart("landscape", specs * 2, everything, trunks), trunks


def _rows(
    path: Path,
    recipe: Recipe,
    named: Mapping[str, Any],
    parts: Parts,
    trunks: Sequence[PyTree],
    say: Progress,
) -> tuple[Rows, Rows]:
    """Return the rows that align all networks, and those that leave them as they are.

    An assignment that the merge found is taken if it is one-to-one; else one is found
    by the method's own kind of similarity.
    """
    spec, count = parts.spec, len(recipe.models)
    given = {n: np.stack([row] * len(trunks)) for n, row in identity(spec).items()}
    output = f"{recipe.output}/model-0" if recipe.separate else recipe.output
    made = load_provenance(place(recipe, output))
    found, alpha = made["recipe"]["method"], made["recipe"]["alpha"]
    if found != recipe.method:
        raise ValueError(
            f'{path}: its output was merged by "{found}", the recipe says '
            f'"{recipe.method}"; merge again with --overwrite.'
        )
    if found.endswith("-align"):
        stored = made["assignment"]
        return {n: np.concatenate([stored[n], given[n][count:]]) for n in given}, given
    method = "mudsc-align" if found == "average" else found.replace("zip", "align")
    seen = trunks[:count] if found == "average" else trunks[: count + 1]
    moments = None
    if uses_activations(method):
        read = _per_model(named["apply_fn"], count)[0]
        if recipe.separate:
            read = trunk_fn(
                read,
                load_model(recipe, recipe.models[0], None),
                paths.flatten(trunks[0]),
            )
        batches = counted(named["batches"], "collecting activations", say)
        moments = collect(spec, read, seen, batches)
    say("matching", 0, None)
    aligned = match(
        spec,
        seen,
        moments,
        method=method,
        alpha=alpha,
        reference="mean",
        key=jax.random.key(recipe.seed),
    )
    rows = {}
    for name, row in aligned.assignment.items():
        last = row[count:] if len(row) > count else given[name][count : count + 1]
        rows[name] = np.concatenate([row[:count], *[last] * (len(trunks) - count)])
    return rows, given


def _per_model(functions: Any, count: int) -> list[Any]:
    return list(functions) if isinstance(functions, Sequence) else [functions] * count


def _ignored(recipe: Recipe, parts: Parts, network: PyTree) -> set[str]:
    """Return the leaves by which distances are not measured: statistics, and heads."""
    if not recipe.separate:
        return set(parts.spec.statistics)
    trunk = parts.spec.axes.keys() - parts.spec.statistics
    return paths.flatten(network).keys() - {f"0/{leaf}" for leaf in trunk}


def _settle(recipe: Recipe, named: Mapping[str, Any]) -> Any:
    if "update_fn" not in named:
        return None
    functions, batches = named["update_fn"], named["batches"]
    if not recipe.separate:
        return lambda variables: reset_batch_stats(functions, variables, batches)
    several = _per_model(functions, len(recipe.models))
    return lambda networks: [
        reset_batch_stats(function, variables, batches)
        for function, variables in zip(several, networks, strict=True)
    ]


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
