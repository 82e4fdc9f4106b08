"""Haiku: transformed functions as pure functions."""

import haiku as hk
import jax
import numpy as np
import pytest

import jmudsc
from jmudsc.adapters import haiku as adapter


def forward(x, is_training):
    x = hk.Conv2D(6, 3)(x)
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
    if is_training:
        x = hk.dropout(hk.next_rng_key(), 0.2, x)
    return hk.Linear(3)(x.mean(axis=(1, 2)))


def batch(seed):
    return jax.random.normal(jax.random.key(seed), (4, 6, 6, 2))


NET = hk.transform_with_state(forward)


def network(seed):
    return NET.init(jax.random.key(seed), batch(0), is_training=True)


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_outputs_are_those_in_evaluation_and_statistics_move_as_in_training():
    params, state = network(0)
    variables, apply_fn, update_fn = adapter.functions(NET, params, state)
    expected, _ = NET.apply(params, state, None, batch(1), is_training=False)
    same(apply_fn(variables, batch(1)), expected)
    _, moved = NET.apply(params, state, jax.random.key(9), batch(1), is_training=True)
    jax.tree.map(same, update_fn(variables, batch(1))["state"], moved)


def test_two_networks_merge():
    nets = [adapter.functions(NET, *network(seed)) for seed in range(2)]
    result = jmudsc.merge(
        nets[0].apply_fn,
        [net.variables for net in nets],
        [batch(0), batch(1)],
        update_fn=nets[0].update_fn,
        key=jax.random.key(0),
    )
    expected, _ = NET.apply(
        result.variables["params"],
        result.variables["state"],
        None,
        batch(2),
        is_training=False,
    )
    same(nets[0].apply_fn(result.variables, batch(2)), expected)


@pytest.mark.parametrize("without", [False, True])
def test_a_function_without_state(without):
    net = hk.transform(lambda x, y: hk.Linear(2)(x + y))
    net = hk.without_apply_rng(net) if without else net
    x = np.ones((3, 4), np.float32)
    params = net.init(jax.random.key(0), x, x)
    variables, apply_fn, update_fn = adapter.functions(net, params)
    expected = net.apply(params, x, x) if without else net.apply(params, None, x, x)
    same(apply_fn(variables, (x, x)), expected)
    assert update_fn is None
