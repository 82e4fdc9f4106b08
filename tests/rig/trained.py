"""Two networks as training scripts make them, and what a recipe names of them."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn, nnx

X = jnp.arange(24.0).reshape(6, 4) / 24


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(2)(nn.relu(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return self.out(self.norm(x))


GRAPH = nnx.graphdef(nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0))))


def train_linen(seed):
    """A step of SGD, as a script takes many."""
    variables = LinenNet().init(jax.random.key(seed), X)

    def loss(params):
        variables_of = {"params": params, "batch_stats": variables["batch_stats"]}
        out, new = LinenNet().apply(variables_of, X, True, mutable=["batch_stats"])
        return jnp.mean(out**2), new

    gradient, new = jax.grad(loss, has_aux=True)(variables["params"])
    steps, _ = optax.sgd(0.1).update(gradient, optax.sgd(0.1).init(None))
    return {"params": optax.apply_updates(variables["params"], steps), **new}


def train_nnx(seed):
    return nnx.state(NnxNet(nnx.Rngs(seed)))


def linen_fn(variables, x):
    return LinenNet().apply(variables, x)


def nnx_fn(variables, x):
    state = nnx.eval_shape(lambda: nnx.state(NnxNet(nnx.Rngs(0))))
    nnx.replace_by_pure_dict(state, variables)
    return nnx.merge(GRAPH, state)(x)


batches = [X]
