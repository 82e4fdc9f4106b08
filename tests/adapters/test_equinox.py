"""Equinox: models with and without a state as pure functions, and back."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmudsc
from jmudsc.adapters import equinox as adapter


class Net(eqx.Module):
    """Convolutions with BatchNorm, dropout and a buffer."""

    first: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    heads: list
    order: jax.Array

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(2, 6, 3, key=keys[0])
        self.norm = eqx.nn.BatchNorm(6, "batch", mode="ema")
        self.dropout = eqx.nn.Dropout(0.2)
        self.heads = [
            eqx.nn.Linear(6, 5, key=keys[1]),
            eqx.nn.Linear(5, 3, key=keys[2]),
        ]
        self.order = jnp.array([2, 0, 1])

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        x = self.dropout(jax.nn.relu(x).mean(axis=(1, 2)))
        x = jax.nn.relu(self.heads[0](x))
        return self.heads[1](x)[self.order], state


def batch(seed):
    return jax.random.normal(jax.random.key(seed), (4, 2, 6, 6))


def network(seed):
    return eqx.nn.make_with_state(Net)(jax.random.key(seed))


def mapped(model, state, x):
    run = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    return run(x, state)


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_outputs_are_those_in_inference():
    model, state = network(0)
    variables, apply_fn, update_fn = adapter.functions(model, state)
    updated = update_fn(variables, batch(1))
    found = apply_fn(updated, batch(2))
    trained = eqx.tree_at(lambda m: m.dropout.inference, model, True)
    _, moved = mapped(trained, state, batch(1))
    expected, _ = mapped(eqx.nn.inference_mode(model), moved, batch(2))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_variables_are_floats_by_readable_paths():
    variables, *_ = adapter.functions(*network(0))
    assert variables["model"]["heads"]["0"]["weight"].shape == (5, 6)
    assert "order" not in variables["model"]
    assert all(
        jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(variables)
    )


def test_a_merge_goes_back_into_a_model():
    nets = [network(0), network(1)]
    first, apply_fn, update_fn = adapter.functions(*nets[0])
    second = adapter.functions(*nets[1]).variables
    result = jmudsc.merge(
        apply_fn,
        [first, second],
        [batch(0), batch(1)],
        update_fn=update_fn,
        key=jax.random.key(0),
    )
    model, state = adapter.build(nets[0][0], result.variables, nets[0][1])
    expected, _ = mapped(eqx.nn.inference_mode(model), state, batch(2))
    same(apply_fn(result.variables, batch(2)), expected)
    same(model.order, nets[0][0].order)


def test_a_model_without_state_and_its_own_call():
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    variables, apply_fn, update_fn = adapter.functions(
        model, per_sample=False, call=lambda model, x: jax.vmap(model)(x) * 2
    )
    x = jax.random.normal(jax.random.key(1), (5, 4))
    same(apply_fn(variables, x), jax.vmap(model)(x) * 2)
    assert update_fn is None
    assert adapter.build(model, variables).layers[0].weight is not None


def test_variables_of_another_model_are_refused():
    model = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r'equinox.build: .*\n.*"model/bias" is missing'
    ):
        adapter.build(model, {"model": {"weight": np.zeros((3, 2))}})
