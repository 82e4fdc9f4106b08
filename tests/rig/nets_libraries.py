"""Rows of the conformance table: networks as the libraries write them."""

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import zoo
from conformance import drawn, of_tree, Row
from flax import nnx


def linen(module, *shape):
    batch = drawn(shape, "linen")
    tree = jax.eval_shape(module.init, jax.random.key(0), batch)
    return of_tree(module.apply, tree, batch, type(module).__name__)


def haiku(forward, *shape):
    """A Haiku network with state, initialised for training, run for evaluation."""
    batch = drawn(shape, "haiku")
    net = hk.transform_with_state(forward)
    init = functools.partial(net.init, is_training=True)
    params, state = jax.eval_shape(init, jax.random.key(0), batch)
    tree = {"params": params, "state": state}

    def apply_fn(variables, x):
        state = variables["state"]
        return net.apply(variables["params"], state, None, x, is_training=False)[0]

    return of_tree(apply_fn, tree, batch, forward.__name__)


def equinox(make, *shape):
    """An Equinox network, mapped over the batch."""
    tree = eqx.filter_eval_shape(make)
    arrays, static = eqx.partition(tree, lambda x: hasattr(x, "shape"))
    batch = drawn(shape, "equinox")

    def apply_fn(variables, x):
        return jax.vmap(eqx.combine(variables, static))(x)

    return of_tree(apply_fn, arrays, batch, make.__name__)


def nnx_net(make, *shape):
    """An NNX network: the variables are its parameters, as a pure dict."""
    model = make()
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    batch = drawn(shape, "nnx")

    def apply_fn(variables, x):
        return nnx.merge(graph, variables, jax.tree.map(jnp.asarray, rest))(x)

    return of_tree(apply_fn, nnx.to_pure_dict(params), batch, make.__name__)


def haiku_resnet(x, is_training):
    def norm(x, name):
        return hk.BatchNorm(True, True, 0.9, name=name)(x, is_training)

    x = jax.nn.relu(norm(hk.Conv2D(6, 3, with_bias=False, name="stem")(x), "norm"))
    y = jax.nn.relu(norm(hk.Conv2D(7, 3, with_bias=False, name="conv0")(x), "norm0"))
    x = x + norm(hk.Conv2D(6, 3, with_bias=False, name="conv1")(y), "norm1")
    return hk.Linear(3, name="head")(x.mean(axis=(1, 2)))


def haiku_transformer(x, is_training):
    def norm(x, name):
        return hk.LayerNorm(-1, True, True, name=name)(x)

    x = hk.Linear(12, name="embed")(x)
    init = hk.initializers.VarianceScaling()
    y = norm(x, "norm0")
    x = x + hk.MultiHeadAttention(3, 4, w_init=init, name="attention")(y, y, y)
    y = jax.nn.gelu(hk.Linear(10, name="up")(norm(x, "norm1")))
    x = x + hk.Linear(12, name="down")(y)
    return hk.Linear(3, name="head")(norm(x, "norm2").mean(axis=1))


def haiku_memory(x, is_training):
    """A recurrence unrolled by Haiku."""
    core = hk.GRU(5)
    h, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[1]))
    return hk.Linear(2)(h[-1])


def equinox_mlp():
    return eqx.nn.MLP(6, 3, 8, 2, key=jax.random.key(0))


class EquinoxTransformer(eqx.Module):
    embed: eqx.nn.Linear
    norms: list
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 4)
        self.embed = eqx.nn.Linear(6, 12, key=keys[0])
        self.norms = [eqx.nn.LayerNorm(12), eqx.nn.RMSNorm(12)]
        self.attention = eqx.nn.MultiheadAttention(3, 12, key=keys[1])
        self.up = eqx.nn.Linear(12, 10, key=keys[2])
        self.down = eqx.nn.Linear(10, 12, key=keys[3])

    def __call__(self, x):
        x = jax.vmap(self.embed)(x)
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        y = jax.vmap(lambda x: self.down(jax.nn.gelu(self.up(x))))(
            jax.vmap(self.norms[1])(x)
        )
        return (x + y).max(axis=1)


class EquinoxConv(eqx.Module):
    layers: list

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 3)
        self.layers = [
            eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0]),
            eqx.nn.GroupNorm(4, 8),
            jax.nn.relu,
            eqx.nn.MaxPool2d(2, 2),
            eqx.nn.Conv2d(8, 6, 3, key=keys[1]),
            eqx.nn.PReLU(),
            jnp.ravel,
            eqx.nn.Linear(6, 3, key=keys[2]),
        ]

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class NnxTransformer(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Linear(6, 12, rngs=rngs)
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(3, 12, decode=False, rngs=rngs)
        self.up = nnx.Linear(12, 10, rngs=rngs)
        self.down = nnx.Linear(10, 12, rngs=rngs)
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x):
        x = self.embed(x)
        x = x + self.attention(self.norm(x))
        x = x + self.down(nnx.gelu(self.up(x)))
        return self.head(x.mean(axis=1))


class NnxMemory(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.memory = nnx.RNN(nnx.GRUCell(3, 5, rngs=rngs))
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.memory(x)[:, -1])


class LinenBlock(nn.Module):
    """A pre-normed MLP block, to be scanned."""

    @nn.compact
    def __call__(self, x, _):
        y = nn.gelu(nn.Dense(7)(nn.LayerNorm()(x)))
        return x + nn.Dense(6)(y), None


class LinenScan(nn.Module):
    """Blocks stacked by `nn.scan` over `nn.remat`."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="in")(x)
        blocks = nn.scan(
            nn.remat(LinenBlock),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        x, _ = blocks(name="blocks")(x, None)
        return nn.Dense(2, name="out")(x)


class LinenMemory(nn.Module):
    """An `OptimizedLSTMCell` over time."""

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.OptimizedLSTMCell(5))(x)
        return nn.Dense(2)(x[:, -1])


class LinenSpectral(nn.Module):
    """Mixing over tokens by a Fourier transform."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        x = x + jnp.fft.fft(x, axis=1).real
        return nn.Dense(2)(nn.gelu(nn.Dense(9)(nn.RMSNorm()(x))))


ATTENTION = "heads 3, query/key 4 per heads, value 4 per heads"

ROWS = {
    "linen, normalized queries": Row(
        zoo.NETS["attention with normalized queries"],
        "stream 12, heads 3, query/key 4, value 4 per heads, hidden 20",
    ),
    "linen, GroupNorm": Row(zoo.NETS["group norm"], "groups 4, channels 3 per groups"),
    "linen, scan of remat": Row(
        lambda: linen(LinenScan(), 4, 5),
        "layers 3 fixed, stream 6, hidden 7 per layers",
    ),
    "linen, LSTM": Row(lambda: linen(LinenMemory(), 4, 6, 3), "hidden 5"),
    "linen, Fourier mixing": Row(
        lambda: linen(LinenSpectral(), 3, 4, 5), "stream 6, hidden 9"
    ),
    "nnx, transformer": Row(
        lambda: nnx_net(NnxTransformer, 2, 7, 6),
        f"stream 12, {ATTENTION}, hidden 10",
    ),
    "nnx, GRU": Row(lambda: nnx_net(NnxMemory, 4, 6, 3), "hidden 5"),
    "equinox, MLP": Row(lambda: equinox(equinox_mlp, 5, 6), "first 8, second 8"),
    "equinox, transformer": Row(
        lambda: equinox(EquinoxTransformer, 3, 5, 6),
        f"stream 12, {ATTENTION}, hidden 10",
    ),
    "equinox, convolutions": Row(
        lambda: equinox(EquinoxConv, 2, 3, 6, 6),
        "groups 4, channels 2 per groups, second 6",
    ),
    "haiku, ResNet block": Row(
        lambda: haiku(haiku_resnet, 2, 6, 6, 3), "stream 6, inner 7"
    ),
    "haiku, transformer": Row(
        lambda: haiku(haiku_transformer, 2, 5, 6),
        f"stream 12, {ATTENTION}, hidden 10",
    ),
    "haiku, GRU": Row(lambda: haiku(haiku_memory, 6, 4, 3), "hidden 5"),
}
