"""Merges are restored by the very calls that restore the parents, in training code."""

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_checks import assert_same
from flax import nnx
from trained import batches, GRAPH, linen_fn, nnx_fn, train_linen, train_nnx, X

import jmudsc
from jmudsc.recipes.merge import merge_recipe

# How a script saves, and how it restores into a tree like the one it trains.


def standard(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def restore_standard(path, like):
    return ocp.StandardCheckpointer().restore(path, like)


def pytree(path, tree):
    ocp.PyTreeCheckpointer().save(path, tree)


def restore_pytree(path, like):
    args = ocp.checkpoint_utils.construct_restore_args(like)
    return ocp.PyTreeCheckpointer().restore(path, item=like, restore_args=args)


def version_one(path, tree):
    writers.version_one(path, tree)


def restore_version_one(path, like):
    return writers.v1.load(path, like)


WAYS = {
    "StandardSave": (standard, restore_standard),
    "PyTreeSave": (pytree, restore_pytree),
    "v1": (version_one, restore_version_one),
}
if not hasattr(writers.v1, "load"):  # that of orbax 0.11 reads what it wrote alone
    del WAYS["v1"]
TRAINED = {"linen": (train_linen, linen_fn), "nnx": (train_nnx, nnx_fn)}

RECIPE = """
models: [a, b]
apply_fn: trained:{kind}_fn
batches: trained:batches
method: weight-align
output: merged
"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TRAINED)
def test_a_merge_by_a_recipe_is_restored_as_its_parents(kind, way, tmp_path):
    (train, apply_fn), (write, restore) = TRAINED[kind], WAYS[way]
    for seed, name in enumerate("ab"):
        write(tmp_path / name, train(seed))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(kind=kind))
    merge_recipe(tmp_path / "recipe.yaml")
    like = jax.tree.map(jnp.zeros_like, train(0))
    assert_same(restore(tmp_path / "a", like), train(0))  # as the parent is
    found = restore(tmp_path / "merged", like)
    assert jax.tree.structure(found) == jax.tree.structure(like)
    plain = jmudsc.load(tmp_path / "merged")
    assert jax.tree.structure(plain) == jax.tree.structure(jmudsc.load(tmp_path / "a"))
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(one, two)
    if kind == "nnx":
        np.testing.assert_array_equal(nnx.merge(GRAPH, found)(X), apply_fn(plain, X))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TRAINED)
def test_a_merge_of_the_trees_of_a_script_is_restored_as_they_are(kind, way, tmp_path):
    (train, apply_fn), (write, restore) = TRAINED[kind], WAYS[way]
    for seed, name in enumerate("ab"):
        write(tmp_path / name, train(seed))
    like = jax.tree.map(jnp.zeros_like, train(0))
    models = [jmudsc.load(tmp_path / name, like=like) for name in "ab"]
    assert_same(models[0], train(0))
    function = (
        apply_fn if kind == "linen" else lambda state, x: nnx.merge(GRAPH, state)(x)
    )
    options = {"method": "weight-align", "key": jax.random.key(0)}
    result = jmudsc.merge(function, models, batches, **options)
    path = jmudsc.save(tmp_path / "merged", result)
    assert_same(restore(path, like), result.variables)
    assert_same(jmudsc.load(path, like=like), result.variables)


def test_a_step_of_a_manager_is_merged_and_restored(tmp_path):
    like = jax.tree.map(jnp.zeros_like, train_linen(0))
    for seed, name in enumerate("ab"):
        writers.manager_step(tmp_path / name, train_linen(seed))
    models = [jmudsc.load(tmp_path / name / "2") for name in "ab"]
    options = {"method": "weight-align", "key": jax.random.key(0)}
    result = jmudsc.merge(linen_fn, models, batches, **options)
    path = jmudsc.save(tmp_path / "merged" / "2" / "default", result)
    with ocp.CheckpointManager(tmp_path / "merged") as manager:
        found = manager.restore(2, args=ocp.args.StandardRestore(like))
    assert_same(found, result.variables)
    assert_same(restore_standard(path, like), result.variables)
