"""Leaves of a checkpoint in the structure of a tree that is given."""

import dataclasses
import re

import checkpoint_writers as writers
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_checks import assert_same, sentence
from flax import nnx

from jmudsc.checkpoints.load import load
from jmudsc.checkpoints.save import save_variables
from jmudsc.lazy import is_lazy, read_all

ENDINGS = ["", ".safetensors", ".npz", ".msgpack"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array | None


def one(number, dtype=jnp.float32):
    return jnp.full((2, 3), number, dtype)


def tree():
    layers = [Layer(one(n), None if n % 2 else one(-n)) for n in range(12)]
    return {"layers": layers, "pair": (one(1), {}), "none": None, 3: {4: one(5)}}


def shapes(of):
    return jax.eval_shape(lambda: of)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("abstract", [False, True])
def test_dataclasses_lists_and_tuples_come_back(ending, abstract, tmp_path):
    given = {"a": tree()["layers"], "b": tree()["pair"]}
    path = save_variables(tmp_path / f"run{ending}", given)
    like = jax.tree.map(jnp.zeros_like, given)
    assert_same(load(path, like=shapes(like) if abstract else like), given)
    assert_same(load(path, "a", like=like["a"]), given["a"])
    lazy = load(path, like=like, lazy=True)
    assert is_lazy(lazy)
    assert_same(read_all(lazy), given)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_nnx_state_comes_back_as_one(ending, tmp_path):
    graph, state = nnx.split(writers.Net(nnx.Rngs(0)))
    blank = nnx.state(nnx.eval_shape(lambda: writers.Net(nnx.Rngs(0))))
    path = save_variables(tmp_path / f"run{ending}", state)
    found = load(path, like=blank)
    assert_same(found, state)
    x = jnp.arange(2.0)[None]
    expected = nnx.merge(graph, state).linear(x)
    np.testing.assert_array_equal(nnx.merge(graph, found).linear(x), expected)


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_equinox_module_comes_back_with_its_functions(ending, tmp_path, key):
    model = eqx.nn.MLP(2, 3, 4, 1, key=key)
    path = save_variables(tmp_path / f"run{ending}", eqx.filter(model, eqx.is_array))
    found = load(path, like=eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(7)))
    assert_same(eqx.filter(found, eqx.is_array), eqx.filter(model, eqx.is_array))
    x = jnp.arange(2.0)
    np.testing.assert_array_equal(found(x), model(x))


def test_a_typed_key_comes_back_as_one(tmp_path):
    key = jax.random.key(3)
    path = save_variables(tmp_path / "run.npz", {"rng": jax.random.key_data(key)})
    found = load(path, like={"rng": jax.random.key(0)})["rng"]
    assert found == key


def test_leaves_are_renamed_first(tmp_path):
    path = save_variables(tmp_path / "run.npz", {"a": {"weight": one(1)}})
    found = load(path, rename={"*/weight": "*/kernel"}, like={"a": {"kernel": one(0)}})
    assert_same(found, {"a": {"kernel": one(1)}})


def test_all_that_differs_is_in_one_error(tmp_path):
    stored = {"a": one(0), "b": {"bais": one(1)}, "c": one(2), "d": one(3), "s": one(1)}
    like = {
        "a": one(0),
        "b": {"bias": one(1)},
        "c": jnp.zeros((3, 2)),
        "d": one(3, jnp.int32),
    }
    path = save_variables(tmp_path / "run.npz", stored)
    expected = (
        f"{path}: expected the 4 leaves of `like`, got 5 that differ. Correct `like`, "
        "or name a subtree or rename leaves:\n"
        '  b/bias: is not there; did you mean "b/bais"?\n'
        "  b/bais: is not in `like`\n"
        "  s: is not in `like`\n"
        "  c: expected float32[3, 2], got float32[2, 3]\n"
        "  d: expected int32[2, 3], got float32[2, 3]"
    )
    for lazy in (False, True):
        with pytest.raises(ValueError, match=sentence(expected)):
            load(path, like=like, lazy=lazy)


def test_numbers_are_leaves_too(tmp_path):
    path = save_variables(tmp_path / "run.npz", {"step": np.int32(7), "rate": 0.5})
    found = load(path, like={"step": 0, "rate": 0.0})
    assert found == {"step": 7, "rate": 0.5}
    with pytest.raises(
        ValueError, match=re.escape("step: expected float32[], got int")
    ):
        load(path, like={"step": 0.0, "rate": 0.0})
