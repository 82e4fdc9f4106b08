"""Landscape networks: the networks of a recipe, brought to one order of units.

Losses can be compared on one plane only if units are in one order. The parents are
permuted, never zipped: a zip averages units of one parent, and what is left of that
parent is not the parent any more. A network merged by a zip is no mean of permuted
parents, so it is aligned to them as one more network, and is a corner of the plane.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import first_batch
from jmudsc.checkpoints.urls import AnyPath
from jmudsc.landscape.plane import Plane, plane_through
from jmudsc.matching.activation_statistics import collect
from jmudsc.matching.coordinate_descent import match
from jmudsc.matching.methods import aligning, method_of, TABLE
from jmudsc.matching.moments import Moments
from jmudsc.merging.contenders import BEST, BEST_OF
from jmudsc.merging.heads import put_together
from jmudsc.merging.inputs import Inputs, per_model
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import prepare, Prepared
from jmudsc.merging.save_result import load_provenance
from jmudsc.progress import Counted, Progress
from jmudsc.recipes.resolve import load_merged, load_model, outputs, resolved, spec_by
from jmudsc.recipes.schema import Recipe
from jmudsc.reordering.combine import combine
from jmudsc.reordering.permute import identity, random_permutations
from jmudsc.repairs.batch_stats import reset_batch_stats
from jmudsc.spec.permutation_spec import PermutationSpec

# Label -> for every network the place that each of its units goes to.
Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class LandscapeNetworks:
    """The networks of a recipe, seen together.

    Where leaves are separate, each network is a list of the variables for every model:
    its own trunk, under the head of that model.

    Attributes:
        networks: name -> variables, all in one order of units but those that say so.
        plane: through three of them.
        lines: name -> the two networks between which losses are measured.
        settle: resets running statistics; None if there is nothing to reset.
    """

    networks: Mapping[str, PyTree]
    plane: Plane
    lines: Mapping[str, tuple[PyTree, PyTree]]
    settle: Callable[[PyTree], PyTree] | None


@dataclass(frozen=True, eq=False)
class _Saved:
    """The networks of a recipe in the order of units in which they were saved.

    Attributes:
        path: the recipe's file, named in errors.
        recipe: the recipe.
        batches: its calibration batches.
        prepared: the parents, then what they were merged to.
    """

    path: AnyPath
    recipe: Recipe
    batches: Any
    prepared: Prepared

    @property
    def parents(self) -> int:
        """How many of the networks are parents."""
        return len(self.recipe.models)


def landscape_networks(
    path: AnyPath, recipe: Recipe, say: Progress
) -> LandscapeNetworks:
    """Load the parents of a recipe and the merged network, and bring them together.

    Args:
        path: the recipe's file, named in errors.
        recipe: the recipe.
        say: called with the stage, how much of it is done, and out of how much.

    Returns:
        The networks in one order of units, and the plane through them.

    Raises:
        FileNotFoundError: if a checkpoint is not there.
        ValueError: if the recipe names what is not there, or its output was merged by
            another method.
    """
    named = resolved(recipe, ("apply_fn", "batches", "update_fn"))
    parents = [load_model(recipe, source, say) for source in recipe.models]
    networks = [*parents, *load_merged(path, recipe, say)]
    prepared = _prepared(path, recipe, named, networks)
    saved = _Saved(path, recipe, named["batches"], prepared)
    given = {
        name: np.stack([row] * len(networks))
        for name, row in identity(prepared.spec).items()
    }
    aligned = _aligned(saved, given, say)
    together = _named_networks(saved, given, aligned)
    plane, networks = _plane(saved, together, aligned)
    orders = {"aligned": aligned, "as given": given}
    lines = {
        name: (_in_order(saved, 0, rows), _in_order(saved, 1, rows))
        for name, rows in orders.items()
    }
    return LandscapeNetworks(networks, plane, lines, settle_by(recipe, named))


def _prepared(
    path: AnyPath, recipe: Recipe, named: Mapping[str, Any], networks: Sequence[PyTree]
) -> Prepared:
    """Find the spec of the networks, and what is merged of each."""
    options = recipe.options
    assert isinstance(options, MergeOptions)
    # The weights are of the parents alone.
    options = dataclasses.replace(options, weights=None)
    batches = named["batches"]
    functions = _per_model("apply_fn", named, recipe)
    spec = None
    if recipe.spec is not None:
        spec = spec_by(path, recipe, functions[0], batches, networks[0])
    # Where leaves are separate, the merged networks have the heads of their parents.
    apply_fn = functions * 2 if options.separate else functions[0]
    inputs = Inputs(apply_fn, networks, batches, spec)
    return prepare("landscape", inputs, first_batch("landscape", batches), options)


def _per_model(key: str, named: Mapping[str, Any], recipe: Recipe) -> list[Any]:
    count, separate = len(recipe.models), recipe.options.separate
    return per_model("landscape", key, named[key], count, separate)


def _aligned(saved: _Saved, given: Rows, say: Progress) -> Rows:
    """Return an assignment that aligns all networks one-to-one.

    What the merge found is taken if it is one-to-one; else one is found by the method's
    own kind of similarity, each network aligned to the mean of those before it.
    """
    made = load_provenance(outputs(saved.recipe)[0])
    method, alpha = made["recipe"]["method"], made["recipe"]["alpha"]
    asked = saved.recipe.options.method
    if method != asked:
        raise ValueError(
            f'{saved.path}: expected an output merged by "{asked}", as the recipe '
            f'says, got one merged by "{method}". Run jmudsc merge {saved.path} '
            "--overwrite first."
        )
    row = method_of("landscape", method) if method != BEST else TABLE[BEST_OF[0]]
    if row.aligns:
        stored, count = made["assignment"], saved.parents
        return {n: np.concatenate([stored[n], given[n][count:]]) for n in given}
    one_to_one = aligning(row)
    # What is merged with nothing matched is the mean of the parents as given.
    seen = saved.prepared.trunks[: saved.parents + row.matches]
    moments = _moments(saved, seen, say) if one_to_one.activations else None
    say("matching", 0, None)
    assignment = match(
        saved.prepared.spec,
        seen,
        moments,
        method=one_to_one.name,
        alpha=alpha,
        reference="mean",
        key=jax.random.key(saved.recipe.seed),
    ).assignment
    # Other merged networks have the trunk of the first; those of an average stay.
    more = len(saved.prepared.trunks) - len(seen)
    return {n: np.concatenate([x, *[x[-1:]] * more]) for n, x in assignment.items()}


def _moments(
    saved: _Saved, trunks: Sequence[PyTree], say: Progress
) -> Mapping[str, Moments]:
    batches = Counted(saved.batches, "collecting activations", say)
    return collect(saved.prepared.spec, saved.prepared.trunk_fn, trunks, batches)


def _named_networks(saved: _Saved, given: Rows, aligned: Rows) -> dict[str, PyTree]:
    """Name the networks in the order of units of the merge, and parent B in the other.

    Where nothing is matched, parents are averaged in the order they were given in.
    """
    orders = {"aligned": aligned, "as given": given}
    options = saved.recipe.options
    rows = options.rows if isinstance(options, MergeOptions) else ()
    is_matched = any(row.matches for row in rows)
    names = list(orders) if is_matched else list(orders)[::-1]
    here, there = (orders[name] for name in names)
    networks = {
        "parent A": _in_order(saved, 0, here),
        f"parent B, {names[0]}": _in_order(saved, 1, here),
        "merged": _in_order(saved, saved.parents, here),
    }
    for number in range(2, saved.parents):
        name = f"parent {chr(65 + number)}, {names[0]}"
        networks[name] = _in_order(saved, number, here)
    networks[f"parent B, {names[1]}"] = _in_order(saved, 1, there)
    return networks


def _plane(
    saved: _Saved, networks: Mapping[str, PyTree], rows: Rows
) -> tuple[Plane, Mapping[str, PyTree]]:
    """Lay a plane through networks; where all are on one line, shuffle one of them."""
    ignored = _ignored(saved, networks["parent A"])
    try:
        return plane_through(networks, ignored), networks
    except ValueError:  # whatever their order, the parents are on one line
        key = jax.random.fold_in(jax.random.key(saved.recipe.seed), 1)
        drawn = random_permutations(saved.prepared.spec, key)
        shuffled = {n: np.stack([drawn[n]] * len(row)) for n, row in rows.items()}
        more = {**networks, "parent B, shuffled": _in_order(saved, 1, shuffled)}
        return plane_through(more, ignored), more


def _in_order(saved: _Saved, number: int, rows: Rows) -> PyTree:
    """Bring one network to the order of some rows, and put heads onto its trunk."""
    own = {name: row[[number, number]] for name, row in rows.items()}
    prepared = saved.prepared
    trunk = combine(prepared.spec, [prepared.trunks[number]] * 2, own)
    if not saved.recipe.options.separate:
        return trunk
    whole = put_together(prepared.apart, prepared.models, trunk, rows, prepared.shares)
    is_merged = number >= saved.parents
    return whole[saved.parents :] if is_merged else whole[: saved.parents]


def _ignored(saved: _Saved, network: PyTree) -> set[str]:
    """Return the leaves by which distances are not measured: statistics, and heads."""
    spec: PermutationSpec = saved.prepared.spec
    if not saved.recipe.options.separate:
        return set(spec.statistics)
    trunk = spec.axes.keys() - spec.statistics
    return paths.flatten(network).keys() - {f"0/{leaf}" for leaf in trunk}


def settle_by(
    recipe: Recipe, named: Mapping[str, Any]
) -> Callable[[PyTree], PyTree] | None:
    """Return what resets running statistics; None if nothing does.

    Args:
        recipe: the recipe.
        named: what its import paths name.
    """
    if named.get("update_fn") is None:  # also where an adapter gives none
        return None
    function, batches = named["update_fn"], named["batches"]
    if not recipe.options.separate:
        return lambda variables: reset_batch_stats(function, variables, batches)
    several = _per_model("update_fn", named, recipe)
    return lambda networks: [
        reset_batch_stats(own, variables, batches)
        for own, variables in zip(several, networks, strict=True)
    ]
