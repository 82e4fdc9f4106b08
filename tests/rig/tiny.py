"""Networks of a few units as plain functions over dicts, and weights for them."""

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jmudsc import Fixed, infer_spec, PermutationSpec, Site, Units
from jmudsc.spec.permutation_spec import labels_of


@dataclass(frozen=True)
class Tiny:
    """A network: `apply_fn(variables, x)`, its leaves' shapes and one input's shape."""

    apply_fn: Callable[[dict, jax.Array], jax.Array]
    shapes: dict[str, tuple[int, ...]]
    input_shape: tuple[int, ...]


def variables(net: Tiny, seed: int) -> dict[str, np.ndarray]:
    """Draw weights; no bias is zero, no two units are alike."""
    drawn = {}
    for path, shape in net.shapes.items():
        generator = np.random.default_rng([seed, zlib.crc32(path.encode())])
        leaf = generator.normal(size=shape)
        match path.split("/")[-1]:
            case "kernel":
                leaf *= np.sqrt(2 / np.prod(shape[:-1]))
            case "scale" | "var":
                leaf = np.exp(leaf / 4)
            case _:
                leaf = leaf / 2
        drawn[path] = leaf.astype(np.float32)
    return drawn


def batch(net: Tiny, seed: int, size: int = 16) -> np.ndarray:
    """Draw one batch of inputs."""
    generator = np.random.default_rng([seed, 1])
    return generator.normal(size=(size, *net.input_shape)).astype(np.float32)


@functools.cache
def spec_of(name: str) -> PermutationSpec:
    """Derive the spec of one of `NETS`."""
    net = NETS[name]
    return infer_spec(net.apply_fn, variables(net, 0), batch(net, 0, 2))


def label_at(spec: PermutationSpec, path: str, axis: int) -> str:
    """Return the one label on an axis of a leaf."""
    (label,) = spec.axes[path][axis].labels()
    return label


def _mlp(v, x):
    x = jax.nn.relu(x @ v["a/kernel"] + v["a/bias"][None])
    x = jax.nn.relu(x @ v["b/kernel"] + v["b/bias"][None])
    return x @ v["c/kernel"] + v["c/bias"][None]


MLP = Tiny(
    _mlp,
    {
        "a/kernel": (5, 8),
        "a/bias": (8,),
        "b/kernel": (8, 6),
        "b/bias": (6,),
        "c/kernel": (6, 3),
        "c/bias": (3,),
    },
    (5,),
)


def conv(x, kernel):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers
    )


def _cnn(v, x):
    x = conv(x, v["a/kernel"])
    mean, var, scale, bias = (
        v[f"norm/{leaf}"][None, None, None] for leaf in ("mean", "var", "scale", "bias")
    )
    x = jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-5) * scale + bias)
    x = jax.nn.relu(conv(x, v["b/kernel"]) + v["b/bias"][None, None, None])
    return x.reshape(len(x), -1) @ v["c/kernel"] + v["c/bias"][None]


CNN = Tiny(
    _cnn,
    {
        "a/kernel": (3, 3, 2, 6),
        "norm/mean": (6,),
        "norm/var": (6,),
        "norm/scale": (6,),
        "norm/bias": (6,),
        "b/kernel": (3, 3, 6, 5),
        "b/bias": (5,),
        "c/kernel": (4 * 4 * 5, 3),
        "c/bias": (3,),
    },
    (4, 4, 2),
)


def _recurrent(v, x):
    state = jnp.tanh(x[:, 0] @ v["in/kernel"] + v["in/bias"][None])
    for step in range(1, 3):
        put = x[:, step] @ v["in/kernel"] + v["in/bias"][None]
        state = jnp.tanh(state @ v["state/kernel"] + put)
    return state @ v["out/kernel"]


RECURRENT = Tiny(
    _recurrent,
    {
        "in/kernel": (4, 7),
        "in/bias": (7,),
        "state/kernel": (7, 7),
        "out/kernel": (7, 2),
    },
    (3, 4),
)


def _endless(v, x):
    """Go on for as long as values say, so that nobody knows how often."""
    state = jnp.tanh(x @ v["in/kernel"])
    goes_on = lambda carry: carry[0] < 3
    step = lambda carry: (carry[0] + 1, jnp.tanh(carry[1] @ v["state/kernel"]))
    return jax.lax.while_loop(goes_on, step, (0, state))[1] @ v["out/kernel"]


ENDLESS = Tiny(
    _endless,
    {"in/kernel": (4, 7), "state/kernel": (7, 7), "out/kernel": (7, 2)},
    (4,),
)


def heads(v, x):
    """Return queries, keys and values, (batch, token, head, channel)."""
    q = jnp.einsum("btd,dhc->bthc", x, v["q/kernel"]) + v["q/bias"][None, None]
    k = jnp.einsum("btd,dhc->bthc", x, v["k/kernel"])
    return q, k, jnp.einsum("btd,dhc->bthc", x, v["v/kernel"])


def _attention(v, x):
    q, k, values = heads(v, x)
    weights = jax.nn.softmax(jnp.einsum("bthc,bshc->bhts", q, k))
    mixed = jnp.einsum("bhts,bshc->bthc", weights, values)
    return jnp.einsum("bthc,hcd->btd", mixed, v["out/kernel"])


ATTENTION = Tiny(
    _attention,
    {
        "q/kernel": (6, 3, 4),
        "q/bias": (3, 4),
        "k/kernel": (6, 3, 4),
        "v/kernel": (6, 3, 5),
        "out/kernel": (3, 5, 2),
    },
    (4, 6),
)


def _low_rank(v, x):
    return jax.nn.relu(x @ (v["down/kernel"] @ v["up/kernel"])) @ v["out/kernel"]


LOW_RANK = Tiny(
    _low_rank,
    {"down/kernel": (6, 4), "up/kernel": (4, 9), "out/kernel": (9, 3)},
    (6,),
)


def low_rank_spec() -> PermutationSpec:
    """Return a spec by hand: the label between two kernels has no activations."""
    rank, hidden = Units("rank", 4), Units("hidden", 9)
    axes = {
        "down/kernel": (Fixed(6), rank),
        "out/kernel": (hidden, Fixed(3)),
        "up/kernel": (rank, hidden),
    }
    consumed = frozenset(Site(path, 0) for path in axes)
    labels = labels_of(axes, {"rank": 4, "hidden": 9}, {})
    return PermutationSpec(axes, labels, consumed=consumed)


def _experts(v, x):
    x = jnp.tanh(jnp.einsum("bd,edh->beh", x, v["a/kernel"]) + v["a/bias"][None])
    x = jnp.tanh(jnp.einsum("beh,ehk->bek", x, v["b/kernel"]))
    return jnp.einsum("bek,ekd->bd", x, v["c/kernel"])


EXPERTS = Tiny(
    _experts,
    {
        "a/kernel": (3, 6, 5),
        "a/bias": (3, 5),
        "b/kernel": (3, 5, 4),
        "c/kernel": (3, 4, 6),
    },
    (6,),
)

NETS = {
    "mlp": MLP,
    "cnn": CNN,
    "recurrent": RECURRENT,
    "attention": ATTENTION,
    "experts": EXPERTS,
}
