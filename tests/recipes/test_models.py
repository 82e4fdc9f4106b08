"""Recipes that name a model, and the adapter of its library."""

import textwrap

import flax.nnx as nnx
import jax
import numpy as np
import pytest

import jmudsc
from jmudsc import paths
from jmudsc.adapters import nnx as adapter
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.import_path import adapted
from jmudsc.recipes.landscape import draw_landscape
from jmudsc.recipes.merge import merge_recipe
from jmudsc.recipes.plan import plan_recipe
from jmudsc.recipes.reader import parse_recipe, read_recipe

BASE = {"models": ["a", "b"], "batches": "m:batches", "output": "merged"}
MODEL = {"adapter": "nnx", "factory": "m:make"}

MODULE = """
import flax.nnx as nnx
import jax
import numpy as np


class Net(nnx.Module):
    def __init__(self, rngs, width):
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.first(x))))


def make(width=8, seed=0):
    return Net(nnx.Rngs(seed), width)


batches = [np.random.default_rng(n).normal(size=(32, 4)).astype("f4") for n in range(2)]
"""


def refused(content, *mistakes):
    with pytest.raises(ValueError, match=r"^recipe: correct ") as error:
        parse_recipe(content)
    assert str(error.value).split("\n  ")[1:] == list(mistakes)


def test_a_model_stands_for_its_functions(tmp_path):
    recipe = parse_recipe(BASE | {"model": MODEL})
    assert recipe.apply_fn == recipe.functions["update_fn"]
    written = tmp_path / "recipe.yaml"
    written.write_text(dump_recipe(recipe))
    again = read_recipe(written)
    assert again.import_paths == recipe.import_paths


def test_what_is_wrong_with_a_model_is_said():
    refused(
        BASE | {"model": {"factory": "m:make"}},
        "model: expected an adapter beside the factory, got {'factory': 'm:make'}. Add "
        "one of equinox, haiku, huggingface, keras, linen, nnx.",
    )
    refused(
        BASE | {"model": MODEL | {"adapter": "nxn"}},
        "model: adapter: expected one of equinox, haiku, huggingface, keras, linen, "
        'nnx, got "nxn"; did you mean "nnx"?',
    )
    refused(
        BASE | {"model": MODEL, "apply_fn": "m:apply"},
        "model: expected it in the place of apply_fn and update_fn, got apply_fn too. "
        "Leave out one of them.",
    )


def write_parents(folder, make):
    """Write the variables of two NNX models that a function makes from a seed."""
    for seed, name in enumerate("ab"):
        variables = adapter.functions(make(seed=seed)).variables
        flat = {k: np.asarray(x) for k, x in paths.flatten(variables).items()}
        np.savez(folder / f"{name}.npz", **flat)


def test_a_merge_of_nnx_models_by_one_line(tmp_path, monkeypatch):
    (tmp_path / "adapted_nets.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    import adapted_nets

    write_parents(tmp_path, adapted_nets.make)
    (tmp_path / "recipe.yaml").write_text(
        "models: [a.npz, b.npz]\n"
        "model: {adapter: nnx, factory: adapted_nets:make, width: 8}\n"
        "batches: adapted_nets:batches\n"
        "output: merged.npz\n"
    )
    merge_recipe(tmp_path / "recipe.yaml")
    merged = adapter.build(adapted_nets.make(), jmudsc.load(tmp_path / "merged.npz"))
    assert isinstance(merged, nnx.Module)
    x = np.concatenate(adapted_nets.batches)
    moments = np.asarray(merged.first(x)).mean(0)
    np.testing.assert_allclose(merged.norm.mean[...], moments, rtol=1e-4, atol=1e-5)


def test_a_model_without_running_statistics_is_planned_and_merged(
    tmp_path, monkeypatch
):
    module = textwrap.dedent(
        """
        import jax
        from flax import nnx

        def make(seed=0):
            rngs = nnx.Rngs(seed)
            first, last = nnx.Linear(5, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
            return nnx.Sequential(first, nnx.relu, last)

        batches = [jax.numpy.ones((4, 5)), jax.numpy.zeros((4, 5))]

        def loss(variables):
            return float(sum((x**2).sum() for x in jax.tree.leaves(variables)))
        """
    )
    (tmp_path / "still_nets.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    import still_nets

    write_parents(tmp_path, still_nets.make)
    (tmp_path / "recipe.yaml").write_text(
        "models: [a.npz, b.npz]\n"
        "model: {adapter: nnx, factory: still_nets:make}\n"
        "batches: still_nets:batches\n"
        "losses: [still_nets:loss, still_nets:loss]\n"
        "output: merged.npz\n"
    )
    planned = plan_recipe(tmp_path / "recipe.yaml")
    assert planned.problems == ()
    assert not [x for x in planned.stages if x.name == "resetting statistics"]
    merge_recipe(tmp_path / "recipe.yaml")
    draw_landscape(tmp_path / "recipe.yaml", points=3)


def test_an_adapter_gives_functions_alone(tmp_path):
    recipe = parse_recipe(BASE | {"apply_fn": "os:getcwd", "batches": MODEL})
    with pytest.raises(ValueError, match="expected an import path without") as error:
        adapted(recipe.batches, jax, "batches")
    assert str(error.value) == (
        "expected an import path without an adapter, got nnx. An adapter gives "
        "apply_fn and update_fn alone."
    )
