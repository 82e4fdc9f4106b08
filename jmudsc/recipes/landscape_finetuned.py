"""Landscape finetuned: fine-tunes, their base and what came of them, on one plane.

Their units are in one order, so that they are compared as they are.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.checkpoints.urls import AnyPath
from jmudsc.finetunes.plan_job import is_statistic
from jmudsc.landscape.plane import plane_through
from jmudsc.progress import Progress
from jmudsc.recipes.landscape_networks import LandscapeNetworks, settle_by
from jmudsc.recipes.resolve import load_merged, load_model, resolved
from jmudsc.recipes.schema import Recipe


def finetuned_networks(
    path: AnyPath, recipe: Recipe, say: Progress
) -> LandscapeNetworks:
    """Load the fine-tunes of a recipe, their base, and what they were merged to.

    Where all of them are on one line, a corner of the plane is what is as far from
    parent A as parent B is, leaf by leaf, in a direction drawn at random.

    Args:
        path: the recipe's file, named in errors.
        recipe: the recipe.
        say: called with the stage, how much of it is done, and out of how much.

    Returns:
        The networks, and the plane through them.

    Raises:
        FileNotFoundError: if a checkpoint is not there.
        ValueError: if there is one model only, or an import path is wrong.
    """
    named = resolved(recipe, ("batches", "update_fn"))
    parents = [load_model(recipe, source, say) for source in recipe.models]
    merged = load_merged(path, recipe, say)
    if len(parents) < 2:
        raise ValueError(
            f"{path}: expected two models or more, between which losses are measured, "
            "got one. Use jmudsc evaluate."
        )
    separate = recipe.options.separate
    whole = _under_heads(parents, separate) if separate else (lambda tree: tree)
    named_parents = {f"parent {chr(65 + n)}": whole(x) for n, x in enumerate(parents)}
    first, second, *others = named_parents
    networks = {name: named_parents[name] for name in (first, second)}
    networks["merged"] = list(merged) if separate else merged[0]
    networks |= {name: named_parents[name] for name in others}
    if recipe.base is not None and not separate:
        networks["base"] = load_model(recipe, recipe.base, say)
    leaves = paths.flatten(networks["parent A"])
    ignored = {leaf for leaf in leaves if is_statistic(leaf)}
    try:
        plane = plane_through(networks, ignored)
    except ValueError:  # all are on one line
        ends = networks["parent A"], networks["parent B"]
        key = jax.random.key(recipe.seed)
        networks["parent B, other direction"] = beside(*ends, ignored, key)
        plane = plane_through(networks, ignored)
    line = networks["parent A"], networks["parent B"]
    return LandscapeNetworks(
        networks, plane, {"as given": line}, settle_by(recipe, named)
    )


def beside(first: PyTree, second: PyTree, ignored: Container[str], key: Any) -> PyTree:
    """Return what is as far from a network as another one is, leaf by leaf.

    Args:
        first: the network.
        second: the other one.
        ignored: leaves that stay those of the first.
        key: a PRNG key, of which the direction is drawn.
    """
    others, leaves = paths.flatten(second), {}
    for number, (path, leaf) in enumerate(paths.flatten(first).items()):
        leaves[path] = leaf
        if path in ignored or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            continue
        wide = jnp.asarray(leaf, jnp.float32)
        drawn = jax.random.normal(jax.random.fold_in(key, number), wide.shape)
        far = jnp.linalg.norm((jnp.asarray(others[path], jnp.float32) - wide).ravel())
        size = jnp.linalg.norm(drawn.ravel())
        step = drawn * (far / jnp.where(size == 0, 1, size))
        leaves[path] = (wide + step).astype(jnp.result_type(leaf))
    return paths.unflatten(first, leaves)


def _under_heads(
    parents: Sequence[PyTree], separate: Sequence[str]
) -> Callable[[PyTree], list[PyTree]]:
    """Return what puts a trunk under the heads of all parents."""

    def wrap(tree: PyTree) -> list[PyTree]:
        own = paths.flatten(tree)
        return [
            paths.unflatten(
                head,
                {
                    path: leaf if paths.matches(path, separate) else own[path]
                    for path, leaf in paths.flatten(head).items()
                },
            )
            for head in parents
        ]

    return wrap
