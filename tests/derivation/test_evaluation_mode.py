"""What is not as in evaluation mode is said, and networks that are get no word."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from jmudsc import infer_spec
from jmudsc.derivation.evaluation_mode import signs_of_training, unread_statistics
from jmudsc.derivation.program import trace, unread

X = np.ones((16, 4), np.float32)

DRAWS = (
    "apply_fn: expected a function that gives the same outputs each time, got one that "
    "draws random numbers, in 1 place, as dropout does in training. Call the model in "
    "evaluation mode, with dropout off (deterministic=True, say)."
)
LOSS = (
    "apply_fn: expected outputs with an axis for the samples of a batch, 16 here, got "
    "1 output of shape [], as a loss has. Return the outputs of the network, so that "
    "their order is kept."
)


def normalizes(*leaves):
    return (
        "apply_fn: expected running statistics to be read, got activations normalized "
        "by statistics of the batch, as BatchNorm does in training, and not by "
        f"{', '.join(leaves)}. Call the model in evaluation mode "
        "(use_running_average=True, say)."
    )


class Linen(nn.Module):
    train: bool = False
    rate: float = 0.0

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train)(nn.Dense(8)(x))
        x = nn.Dropout(self.rate, deterministic=not self.train)(nn.relu(x))
        return nn.Dense(3)(x)


def linen(**options):
    module = Linen(**options)
    rngs = {"dropout": jax.random.key(0)}

    def apply_fn(variables, x):
        return module.apply(variables, x, rngs=rngs, mutable=["batch_stats"])

    return apply_fn, Linen().init(jax.random.key(0), X)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


def of_nnx(is_trained):
    model = Nnx(nnx.Rngs(0))
    model.train() if is_trained else model.eval()
    graph, state = nnx.split(model)
    return (lambda variables, x: nnx.merge(graph, variables)(x)), state


def signs(apply_fn, variables, batch=X):
    with jax.numpy_rank_promotion("allow"):
        return signs_of_training(trace(apply_fn, variables, batch))


MEAN, VAR = (f"batch_stats/BatchNorm_0/{name}" for name in ("mean", "var"))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_linen_network_in_training_mode_is_told_so(rate):
    apply_fn, variables = linen(train=True, rate=rate)
    expected = [DRAWS] * (rate > 0) + [normalizes(MEAN, VAR)]
    assert signs(apply_fn, variables) == expected
    assert signs(lambda v, x: apply_fn(v, x)[0], variables) == expected


def test_a_linen_network_in_evaluation_mode_is_not():
    assert signs(*linen(rate=0.5)) == []


def test_an_nnx_network_whose_keys_are_leaves_is_told_so():
    expected = [DRAWS, normalizes("norm/mean/value", "norm/var/value")]
    assert signs(*of_nnx(True)) == expected
    assert signs(*of_nnx(False)) == []


def test_a_loss_is_told_to_be_one():
    apply_fn, variables = linen()
    assert signs(lambda v, x: apply_fn(v, x)[0].mean(), variables) == [LOSS]


def test_outputs_beside_a_loss_are_enough():
    apply_fn, variables = linen()
    both = lambda v, x: (apply_fn(v, x)[0], apply_fn(v, x)[0].mean())
    assert signs(both, variables) == []


def test_an_axis_of_samples_need_not_come_first():
    assert signs(lambda v, x: (x @ v)[-1], np.ones((4, 3)), np.ones((6, 2, 4))) == []


def test_dropout_inside_a_loop_is_found():
    def apply_fn(v, x):
        def step(x, layer):
            keep = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
            return jnp.where(keep, jnp.tanh(x @ layer), 0), None

        return jax.lax.scan(step, x, v["layers"])[0] @ v["out"]

    variables = {"layers": np.ones((3, 4, 4)), "out": np.ones((4, 2))}
    assert signs(apply_fn, variables) == [DRAWS]


def test_batch_statistics_of_scanned_layers_are_found():
    def apply_fn(v, x):
        def step(x, layer):
            kernel, mean = layer
            x = x @ kernel
            kept = 0.9 * mean + 0.1 * x.mean(axis=0)
            x = (x - x.mean(axis=0)) / jnp.sqrt(x.var(axis=0) + 1e-5)
            return jax.nn.relu(x), kept

        return jax.lax.scan(step, x, (v["kernel"], v["mean"]))[0] @ v["out"]

    variables = {
        "kernel": np.ones((3, 4, 4)),
        "mean": np.ones((3, 4)),
        "out": np.ones((4, 2)),
    }
    with jax.numpy_rank_promotion("allow"):
        program = trace(apply_fn, variables, X)
    assert unread(program) == {"mean"}
    assert unread_statistics(program) == ["mean"]


@pytest.mark.parametrize(
    "normalized",
    [
        lambda x: (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1e-5),
        lambda x: (x - x.mean(0)) / (x.std(0) + 1e-5),
    ],
    ids=["by its own statistics", "by those of the batch, with nothing unread"],
)
def test_other_norms_are_none_of_training(normalized):
    apply_fn = lambda v, x: jax.nn.relu(normalized(x @ v["in"])) @ v["out"]
    assert signs(apply_fn, {"in": np.ones((4, 8)), "out": np.ones((8, 2))}) == []


def test_a_leaf_of_another_shape_is_no_running_statistic():
    apply_fn, variables = linen(train=True)
    more = {**variables, "batch_stats": {"other": np.ones(5)}}
    with jax.numpy_rank_promotion("allow"):
        assert unread_statistics(trace(apply_fn, more, X)) == []


@pytest.mark.parametrize("name", tiny.NETS)
def test_small_networks_are_in_evaluation_mode(name):
    net = tiny.NETS[name]
    program = trace(net.apply_fn, tiny.variables(net, 0), tiny.batch(net, 0))
    assert signs_of_training(program) == []


def test_deriving_a_spec_warns(caplog):
    apply_fn, variables = linen(train=True, rate=0.5)
    with caplog.at_level(logging.WARNING), jax.numpy_rank_promotion("allow"):
        infer_spec(apply_fn, variables, X)
    expected = [f"infer_spec: {text}" for text in (DRAWS, normalizes(MEAN, VAR))]
    assert caplog.messages == expected
