"""Linen: modules and training states as pure functions, and back."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from flax.training import train_state

import jmudsc
from jmudsc.adapters import linen as adapter


class Net(nn.Module):
    """A network that trains otherwise than it is evaluated."""

    @nn.compact
    def __call__(self, x, train: bool = True):
        x = nn.Conv(6, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(3)(x.mean(axis=(1, 2)))


class State(train_state.TrainState):
    batch_stats: dict


def batch(seed):
    return jax.random.normal(jax.random.key(seed), (4, 6, 6, 2))


def network(seed):
    return Net().init(jax.random.key(seed), batch(0), train=False)


def state(seed):
    made = network(seed)
    return State.create(apply_fn=Net().apply, tx=optax.sgd(0.1), **made)


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("make", [lambda: (Net(), network(0)), lambda: (state(0),)])
def test_outputs_are_those_in_evaluation(make):
    variables, apply_fn, update_fn = adapter.functions(*make())
    assert variables.keys() == {"params", "batch_stats"}
    same(apply_fn(variables, batch(1)), Net().apply(network(0), batch(1), train=False))
    updated = update_fn(variables, batch(1))
    _, moved = Net().apply(
        network(0),
        batch(1),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(5)},
    )
    jax.tree.map(same, updated["batch_stats"], moved["batch_stats"])
    jax.tree.map(same, updated["params"], variables["params"])


def test_a_merge_goes_back_into_a_training_state():
    states = [state(0), state(1)]
    (first, apply_fn, update_fn), (second, *_) = map(adapter.functions, states)
    result = jmudsc.merge(
        apply_fn,
        [first, second],
        [batch(0), batch(1)],
        update_fn=update_fn,
        key=jax.random.key(0),
    )
    merged = adapter.build(states[0], result.variables)
    jax.tree.map(same, merged.params, result.variables["params"])
    jax.tree.map(same, merged.batch_stats, result.variables["batch_stats"])
    jax.tree.map(same, merged.opt_state, states[0].opt_state)


def test_arguments_of_ones_own_and_several_inputs():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, y, mode):
            return nn.Dense(2)(x + y) * (1 if mode == "fast" else 2)

    x = np.ones((3, 4), np.float32)
    variables = Two().init(jax.random.key(0), x, x, "fast")
    found = adapter.functions(Two(), variables, evaluation={"mode": "slow"})
    same(found.apply_fn(variables, (x, x)), Two().apply(variables, x, x, "slow"))
    assert found.update_fn is None


def test_what_is_neither_is_refused():
    with pytest.raises(ValueError, match="linen") as error:
        adapter.functions(Net())
    assert str(error.value) == (
        "linen.functions: expected a module with its variables, or a TrainState "
        "without, got Net without variables. Pass functions(module, variables) or "
        "functions(state)."
    )
    with pytest.raises(ValueError, match="linen") as error:
        adapter.build(Net(), network(0))
    assert str(error.value) == (
        "linen.build: expected a TrainState, got a module, which holds no variables. "
        "Call model.apply(variables, batch)."
    )
