"""Rankings: every way to make entries with every way to rank them, permuted exactly.

`SCORES` makes units of a batch, by operations that do or do not make some equal;
`RANKED` uses their order. Where the derivation leaves an axis free, outputs must stay
as they are. Ten scores of each ranking are drawn; `DRAWN = len(SCORES)` tries all.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jmudsc import infer_spec, permute, random_permutations

UNITS, DRAWN = 6, 10
SHAPES = {
    "kernel": (5, UNITS), "bias": (UNITS,), "gate": (5, UNITS), "scale": (UNITS,),
    "square": (UNITS, UNITS), "codes": (UNITS, 3),
}  # fmt: skip


def hidden(p, x):
    return x @ p["kernel"] + p["bias"]


def gate(p, x):
    return x @ p["gate"]


def normed(y):
    return (y - y.mean(-1, keepdims=True)) / (y.std(-1, keepdims=True) + 1)


def kept_largest(y, rest):
    return jnp.where(y >= lax.top_k(y, 2)[0][:, -1:], y, rest)


SCORES = {
    "affine": hidden,
    "relu": lambda p, x: jax.nn.relu(hidden(p, x)),
    "scaled relu": lambda p, x: jax.nn.relu(hidden(p, x)) * p["scale"],
    "shifted relu": lambda p, x: jax.nn.relu(hidden(p, x)) + p["scale"],
    "layer after a relu": lambda p, x: jax.nn.relu(hidden(p, x)) @ p["square"],
    "relu6": lambda p, x: jax.nn.relu6(4 * hidden(p, x)),
    "hard tanh": lambda p, x: jax.nn.hard_tanh(2 * hidden(p, x)),
    "hard swish": lambda p, x: jax.nn.hard_swish(4 * hidden(p, x)),
    "softmax": lambda p, x: jax.nn.softmax(hidden(p, x)),
    "sharp softmax": lambda p, x: jax.nn.softmax(1e4 * hidden(p, x)),
    "gelu": lambda p, x: jax.nn.gelu(hidden(p, x)),
    "step": lambda p, x: jnp.heaviside(hidden(p, x), 0.5),
    "int8": lambda p, x: jnp.clip(jnp.round(4 * hidden(p, x)), -9, 9).astype(jnp.int8),
    "float16": lambda p, x: hidden(p, x).astype(jnp.float16),
    "straight through": lambda p, x: (
        hidden(p, x) + lax.stop_gradient(jnp.floor(hidden(p, x)) - hidden(p, x))
    ),
    "only the largest": lambda p, x: kept_largest(hidden(p, x), 0.0),
    "masked": lambda p, x: kept_largest(hidden(p, x), -jnp.inf),
    "squared": lambda p, x: hidden(p, x) ** 2,
    "normed": lambda p, x: normed(hidden(p, x)),
    "normed relu": lambda p, x: normed(jax.nn.relu(hidden(p, x))),
    "broadcast": lambda p, x: jnp.broadcast_to(hidden(p, x)[:, :1], (len(x), UNITS)),
    "gated": lambda p, x: hidden(p, x) * jax.nn.sigmoid(gate(p, x)),
    "gated by a step": lambda p, x: hidden(p, x) * (gate(p, x) > 0),
    "underflow": lambda p, x: jnp.exp(-2000 * jnp.abs(hidden(p, x))),
    "saturated": lambda p, x: jnp.tanh(300 * hidden(p, x)),
    "rounded away": lambda p, x: (hidden(p, x) + 1e18) - 1e18,
    "leaf": lambda p, x: p["scale"] * x[:, :1],
    "rounded leaf": lambda p, x: jnp.round(p["scale"]) * x[:, :1],
    "distances": lambda p, x: ((x[:, :, None] - p["kernel"]) ** 2).sum(1),
    "distances of signs": lambda p, x: jnp.abs(
        jnp.sign(x)[:, :, None] - jnp.sign(p["kernel"])
    ).sum(1),
    "larger of two": lambda p, x: jnp.maximum(hidden(p, x), gate(p, x)),
    "not above the mean": lambda p, x: jnp.minimum(
        hidden(p, x), hidden(p, x).mean(-1, keepdims=True)
    ),
}


def largest(y):
    return y == y.max(-1, keepdims=True)


def on_rows(p, y, name="scale"):
    return jnp.broadcast_to(p[name], y.shape)


def two_experts(p, y):
    gates, chosen = lax.top_k(y, 2)
    weights = jax.nn.softmax(gates.astype(float))
    return (weights[..., None] * p["codes"][chosen]).sum(1)


RANKED = {
    "code of the largest": lambda p, y: p["codes"][jnp.argmax(y, -1)],
    "code of the least": lambda p, y: p["codes"][jnp.argmin(y, -1)],
    "one-hot": lambda p, y: jax.nn.one_hot(jnp.argmax(y, -1), UNITS) @ p["codes"],
    "order": lambda p, y: jnp.take_along_axis(on_rows(p, y), jnp.argsort(y, -1), -1),
    "sort with payload": lambda p, y: lax.sort(
        (y, on_rows(p, y)), dimension=1, num_keys=1
    )[1],
    "two experts": two_experts,
    "sizes of the largest": lambda p, y: lax.top_k(y, 3)[0],
    "ranks": lambda p, y: (
        (y[:, :, None] > y[:, None, :]).sum(-1).astype(float) @ p["codes"]
    ),
    "first above zero": lambda p, y: p["codes"][jnp.argmax(y > 0, -1)],
    "all of the largest": lambda p, y: largest(y).astype(float) @ p["codes"],
    "first of the largest": lambda p, y: (
        (largest(y) & (jnp.cumsum(largest(y), -1) == 1)).astype(float) @ p["codes"]
    ),
    "counted": lambda p, y: (
        jax.ops.segment_sum(jnp.ones(len(y)), jnp.argmax(y, -1), UNITS) @ p["codes"]
    ),
    "scattered": lambda p, y: (
        jnp.zeros(y.shape).at[jnp.arange(len(y)), jnp.argmax(y, -1)].set(1.0)
        @ p["codes"]
    ),
    "a set of three": lambda p, y: p["codes"][lax.top_k(y, 3)[1]].sum(1),
    "a list of three": lambda p, y: (
        p["codes"][lax.top_k(y, 3)[1]] * jnp.array([3.0, 2.0, 1.0])[:, None]
    ).sum(1),
}


@pytest.fixture(autouse=True)
def _as_users_write():
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(True):
        yield


def exact(values):
    return np.nan_to_num(np.asarray(values, float), posinf=1e6, neginf=-1e6)


@pytest.mark.slow
@pytest.mark.parametrize("ranked", RANKED)
def test_outputs_stay_the_same_however_entries_were_made(ranked):
    generator = np.random.default_rng(len(ranked))
    leaves = {name: generator.normal(size=shape) for name, shape in SHAPES.items()}
    x, wrong = generator.normal(size=(40, 5)), []
    for name in generator.permutation([*SCORES])[:DRAWN]:

        def apply_fn(p, x, scores=SCORES[name]):
            return RANKED[ranked](p, scores(p, x))

        spec = infer_spec(apply_fn, leaves, x)
        expected = exact(apply_fn(leaves, x))
        for seed in range(3):
            perms = random_permutations(spec, jax.random.key(seed))
            found = exact(apply_fn(permute(spec, leaves, perms), x))
            if not np.allclose(found, expected, rtol=1e-6, atol=1e-6):
                wrong.append(name)
                break
    assert not wrong
