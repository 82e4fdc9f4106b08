"""Scene: the networks of a recipe, brought to one order of units.

Losses can be compared on one plane only if units are in one order. The parents are
permuted, never zipped: a zip averages units of one parent, and what is left of that
parent is not the parent any more. A network merged by a zip is no mean of permuted
parents, so it is aligned to them as one more network, and is a corner of the plane.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.checkpoints.load import load_provenance
from jmudsc.landscape.plane import Plane, plane_through
from jmudsc.matching.coordinate_descent import match
from jmudsc.matching.methods import aligning, method_of
from jmudsc.matching.moments import collect
from jmudsc.merging.heads import put_together
from jmudsc.merging.separate import (
    take_apart,
    trunk_fn,
    TrunkAndHeads,
    trunks_of,
)
from jmudsc.progress import counted, Progress
from jmudsc.recipes.resolve import load_merged, load_model, outputs, resolved, spec_by
from jmudsc.recipes.schema import Recipe
from jmudsc.reordering.combine import combine
from jmudsc.reordering.permute import identity, random_permutations
from jmudsc.repairs.batch_stats import reset_batch_stats
from jmudsc.spec.freeze import freeze
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn

Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Scene:
    """The networks of a recipe, seen together.

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


def set_up(path: Path, recipe: Recipe, say: Progress) -> Scene:
    """Bring the parents of a recipe and what they were merged to together.

    Args:
        path: the recipe's file, named in errors.
        recipe: the recipe.
        say: called with the stage, how much of it is done, and out of how much.

    Returns:
        The scene. Where leaves are separate, each of its networks is a list of the
        variables for every model: its own trunk, under the head of that model.

    Raises:
        FileNotFoundError: if a checkpoint is not there.
        ValueError: if the recipe names what is not there, or its output was merged by
            another method.
    """
    named = resolved(recipe, ("apply_fn", "batches", "update_fn"))
    parents = [load_model(recipe, source, say) for source in recipe.models]
    merged = load_merged(path, recipe, say)
    everything = [*parents, *merged]
    parts, trunks, read = _taken_apart(path, recipe, named, everything)
    given = {
        name: np.stack([row] * len(everything))
        for name, row in identity(parts.spec).items()
    }
    rows = _aligned(
        path, recipe, parts.spec, trunks, read, named["batches"], given, say
    )
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

    # Where nothing is matched, parents are averaged in the order they were given in.
    is_matched = method_of("landscape", recipe.method).matches
    here, there = (rows, given) if is_matched else (given, rows)
    names = ["as given", "aligned"][:: -1 if is_matched else 1]
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
    return Scene(networks, plane, lines, _settle(recipe, named))


def _taken_apart(
    path: Path, recipe: Recipe, named: Mapping[str, Any], everything: Sequence[PyTree]
) -> tuple[TrunkAndHeads, Sequence[PyTree], ApplyFn]:
    """Find the spec, the trunks where leaves are separate, and the function of them."""
    count, batches = len(recipe.models), named["batches"]
    functions = _per_model(named["apply_fn"], count)
    if not recipe.separate:
        spec = spec_by(path, recipe, functions[0], batches, everything[0])
        specs = [freeze(spec, recipe.frozen)]
        parts = take_apart("landscape", specs, everything, everything)
        return parts, everything, functions[0]
    specs = [
        spec_by(path, recipe, function, batches, model)
        for function, model in zip(functions, everything, strict=False)
    ]
    specs = [freeze(specs[0], recipe.frozen), *specs[1:]]
    trunks = trunks_of("landscape", everything, recipe.separate)
    read = trunk_fn(functions[0], everything[0], paths.flatten(trunks[0]))
    return take_apart("landscape", specs * 2, everything, trunks), trunks, read


def _aligned(
    path: Path,
    recipe: Recipe,
    spec: PermutationSpec,
    trunks: Sequence[PyTree],
    read: ApplyFn,
    batches: Iterable[PyTree],
    given: Rows,
    say: Progress,
) -> Rows:
    """Return an assignment that aligns all networks one-to-one.

    What the merge found is taken if it is one-to-one; else one is found by the method's
    own kind of similarity, each network aligned to the mean of those before it.
    """
    count = len(recipe.models)
    made = load_provenance(outputs(recipe)[0])
    found, alpha = made["recipe"]["method"], made["recipe"]["alpha"]
    if found != recipe.method:
        raise ValueError(
            f'{path}: its output was merged by "{found}", the recipe says '
            f'"{recipe.method}"; merge again with --overwrite.'
        )
    own = method_of("landscape", found)
    if own.pairing == "align":
        stored = made["assignment"]
        return {n: np.concatenate([stored[n], given[n][count:]]) for n in given}
    method = aligning(own)
    seen = trunks[: count + 1] if own.matches else trunks[:count]
    moments = None
    if method.activations:
        shown = counted(batches, "collecting activations", say)
        moments = collect(spec, read, seen, shown)
    say("matching", 0, None)
    key = jax.random.key(recipe.seed)
    options = {"method": method.name, "alpha": alpha, "reference": "mean", "key": key}
    assignment = match(spec, seen, moments, **options).assignment
    # Other merged networks have the trunk of the first; those of an average stay.
    more = len(trunks) - len(seen)
    return {n: np.concatenate([x, *[x[-1:]] * more]) for n, x in assignment.items()}


def _per_model(functions: Any, count: int) -> list[Any]:
    return list(functions) if isinstance(functions, Sequence) else [functions] * count


def _ignored(recipe: Recipe, parts: TrunkAndHeads, network: PyTree) -> set[str]:
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
