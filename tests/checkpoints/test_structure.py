"""Trees of all containers come back from all formats as they were."""

from typing import NamedTuple

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_checks import assert_same
from flax import nnx

from jmudsc.checkpoints.formats import FORMATS
from jmudsc.checkpoints.load import load, load_shapes
from jmudsc.checkpoints.structure import built, names_in, routes_of, structure_of
from jmudsc.merging.save_result import save
from jmudsc.paths import flatten


class Pair(NamedTuple):
    left: jax.Array
    right: jax.Array


class Stack(nnx.Module):
    """More than ten layers, which do not commute."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(12)])

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return x


def one(number):
    return jnp.full(2, number)


TREES = {
    "lists": {"w": [one(0), [one(1)], {"v": [one(2)]}]},
    "tuples": {"w": (one(0), (one(1),), [(one(2), one(3))])},
    "long list": {"w": [one(n) for n in range(12)]},
    "nothing": {"w": one(0), "a": None, "b": {}, "c": [], "d": (), "e": [None, one(1)]},
    "numbers as keys": {"w": {n: {"v": one(n)} for n in range(12)}, "t": {7: one(1)}},
    "slashes": {"a/b": {"c": one(0)}, "a": {"d": one(1)}},
}


def path_of(row, folder):
    return folder / f"merged{''.join(row.endings[:1])}"


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
@pytest.mark.parametrize("name", TREES)
def test_containers_come_back_as_they_were(row, name, tmp_path):
    tree = TREES[name]
    path = save(path_of(row, tmp_path), writers.result_of(tree))
    assert_same(load(path), tree)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    assert load_shapes(path) == shapes


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_a_named_tuple_comes_back_as_a_dict_of_its_names(row, tmp_path):
    path = save(path_of(row, tmp_path), writers.result_of({"p": Pair(one(0), one(1))}))
    assert_same(load(path), {"p": {"left": one(0), "right": one(1)}})


def apply_of(graph):
    """A function of the state's variables, in the order that JAX has for them."""

    def apply_fn(variables, x):
        structure = jax.tree.structure(nnx.to_pure_dict(nnx.state(Stack(nnx.Rngs(0)))))
        leaves = jax.tree.leaves(variables)
        state = nnx.state(Stack(nnx.Rngs(0)))
        nnx.replace_by_pure_dict(state, jax.tree.unflatten(structure, leaves))
        return nnx.merge(graph, state)(x)

    return apply_fn


@pytest.mark.parametrize("of", ["a parent", "a merge", "a part"])
@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_twelve_nnx_layers_keep_their_order(row, of, tmp_path):
    if of != "a merge" and row.name != "orbax":
        row = FORMATS[0]
    graph, state = nnx.split(Stack(nnx.Rngs(1)))
    path = path_of(row, tmp_path)
    if of == "a merge":
        found = load(save(path, writers.result_of(state)))
    elif of == "a parent":
        found = load(writers.standard(path, state))
    else:
        found = load(writers.standard(path, {"params": state, "step": 3}), "params")
    assert_same(found, nnx.to_pure_dict(state))
    x = jnp.arange(3.0)
    expected = nnx.merge(graph, state)(x)
    np.testing.assert_array_equal(apply_of(graph)(found, x), expected)


def test_what_is_renamed_keeps_its_numbers(tmp_path):
    state = nnx.state(Stack(nnx.Rngs(1)))
    path = writers.standard(tmp_path / "run", state)
    found = load(path, rename={"layers/*/kernel": "layers/*/weight"})
    expected = {
        n: {"weight": x["kernel"], "bias": x["bias"]}
        for n, x in nnx.to_pure_dict(state)["layers"].items()
    }
    assert_same(found, {"layers": expected})
    assert_same(load(path, "layers/11/kernel"), expected[11]["weight"])


def test_a_tree_without_wrappers_keeps_numbers_as_text(tmp_path):
    tree = {"layers": {"0": one(0), "10": one(10)}}
    assert_same(load(writers.standard(tmp_path / "run", tree)), tree)


@pytest.mark.parametrize("name", TREES)
def test_a_structure_is_built_again(name):
    tree = TREES[name]
    leaves = flatten(tree)
    structure = structure_of(tree, {path: f"the {path}" for path in leaves})
    assert sorted(names_in(structure)) == sorted(f"the {path}" for path in leaves)
    assert_same(built(structure, {f"the {k}": x for k, x in leaves.items()}), tree)


def test_routes_leave_out_the_variables_of_nnx_and_nothing_else():
    state = nnx.state(writers.Net(nnx.Rngs(0)))
    routes = routes_of({"model": state, "value": {"value": 1}})
    assert routes["model/linear/kernel/value"] == ("model", "linear", "kernel")
    assert routes["value/value"] == ("value", "value")


@pytest.mark.parametrize("wrong", [3, {}, {"set": []}, {"dict": [], "list": []}])
def test_what_is_no_structure_is_told(wrong):
    with pytest.raises(ValueError, match="expected a structure, got"):
        built(wrong, {})
