"""Small networks, one for every way in which a kernel can be used or be made."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from zoo import Net, of_plain, random_leaves

WIDTH, HIDDEN, STEPS, SAMPLES, WORDS = 4, 6, 5, 64, 9
ENDS = {"in": (WIDTH, HIDDEN), "out": (HIDDEN, 3)}


def between_ends(kernel_of, shapes):
    """Let a kernel that is made of leaves be the first of two layers."""

    def apply_fn(v, x):
        return jnp.tanh(x @ kernel_of(v) + v["bias"][None]) @ v["out"]

    ends = {"bias": (HIDDEN,), "out": ENDS["out"]}
    return of_plain(apply_fn, {**shapes, **ends}, (SAMPLES, WIDTH))


def block(x, layer):
    return x + jnp.tanh(x @ layer["up"] + layer["bias"][None]) @ layer["down"]


def scanned_stack(layers=3, reverse=False):
    def apply_fn(v, x):
        stack = {name: v[name] for name in ("up", "bias", "down")}
        step = lambda x, layer: (block(x, layer), None)
        return lax.scan(step, x, stack, reverse=reverse)[0] @ v["last"]

    return of_plain(apply_fn, stack_shapes(layers), (SAMPLES, WIDTH))


def stack_shapes(layers):
    wide = {"up": (layers, WIDTH, HIDDEN), "down": (layers, HIDDEN, WIDTH)}
    return {**wide, "bias": (layers, HIDDEN), "last": (WIDTH, 3)}


def gru_step(v, h, x):
    gates = [
        nn.sigmoid(x @ v[f"{g}/in"] + v[f"{g}/bias"][None] + h @ v[f"{g}/again"])
        for g in ("reset", "update")
    ]
    new = x @ v["new/in"] + v["new/bias"][None] + gates[0] * (h @ v["new/again"])
    return (1 - gates[1]) * jnp.tanh(new) + gates[1] * h


def gru_shapes():
    kinds = {"in": (WIDTH, HIDDEN), "bias": (HIDDEN,), "again": (HIDDEN, HIDDEN)}
    gates = ("reset", "update", "new")
    return {f"{g}/{kind}": s for g in gates for kind, s in kinds.items()} | {
        "out": ENDS["out"]
    }


def gru(steps=STEPS, is_scanned=True):
    def apply_fn(v, x):
        h = jnp.zeros((x.shape[0], HIDDEN)) + 0 * x[:, 0, :1]
        if is_scanned:
            step = lambda h, x: (gru_step(v, h, x), None)
            return lax.scan(step, h, jnp.swapaxes(x, 0, 1))[0] @ v["out"]
        for number in range(x.shape[1]):
            h = gru_step(v, h, x[:, number])
        return h @ v["out"]

    return of_plain(apply_fn, gru_shapes(), (SAMPLES, steps, WIDTH))


def of_module(cell):
    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(cell(HIDDEN))(x).mean(axis=1))

    x = random_leaves({"x": (SAMPLES, STEPS, WIDTH)}, "batch")["x"]
    return Net(Recurrent().apply, Recurrent().init(jax.random.key(0), x), x)


def shared_by_layers():
    def apply_fn(v, x):
        step = lambda x, _: (block(x, v), None)
        return lax.scan(step, x, length=3)[0] @ v["last"]

    shapes = {"up": (WIDTH, HIDDEN), "bias": (HIDDEN,), "down": (HIDDEN, WIDTH)}
    return of_plain(apply_fn, {**shapes, "last": (WIDTH, 3)}, (SAMPLES, WIDTH))


def tied_ends():
    def apply_fn(v, x):
        return jnp.tanh(x @ v["kernel"] + v["bias"][None]) @ v["kernel"].T

    shapes = {"kernel": (WIDTH, HIDDEN), "bias": (HIDDEN,)}
    return of_plain(apply_fn, shapes, (SAMPLES, WIDTH))


def twice():
    def apply_fn(v, x):
        y = jnp.tanh(x @ v["in"])
        for _ in range(2):
            y = jnp.tanh(y @ v["both"] + v["bias"][None])
        return y @ v["out"]

    shapes = {**ENDS, "both": (HIDDEN, HIDDEN), "bias": (HIDDEN,)}
    return of_plain(apply_fn, shapes, (SAMPLES, WIDTH))


def embedding(is_tied):
    def apply_fn(v, tokens):
        y = jnp.tanh(v["words"][tokens].mean(axis=1) @ v["in"]) @ v["out"]
        return y @ v["words"].T if is_tied else y

    shapes = {"words": (WORDS, WIDTH), "in": ENDS["in"], "out": (HIDDEN, WIDTH)}
    draw = np.random.default_rng(0)
    tokens = draw.integers(WORDS, size=(SAMPLES, 3), dtype=np.int32)
    return Net(apply_fn, random_leaves(shapes, "zoo"), jnp.asarray(tokens))


def convolution(shapes, convolve):
    def apply_fn(v, x):
        y = jnp.tanh(convolve(x, v["kernel"]) + v["bias"][None, None])
        return y.mean(axis=1) @ v["out"]

    units = shapes["kernel"][-1]
    ends = {"bias": (units,), "out": (units, 3)}
    return of_plain(apply_fn, {**shapes, **ends}, (SAMPLES, 7, WIDTH))


NUMBERS = ("NWC", "WIO", "NWC")


def grouped(groups):
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1,),
        padding="SAME",
        dimension_numbers=NUMBERS,
        feature_group_count=groups,
    )
    return convolution({"kernel": (3, WIDTH // groups, 2 * WIDTH)}, convolve)


def transposed():
    convolve = functools.partial(
        lax.conv_transpose, strides=(2,), padding="SAME", dimension_numbers=NUMBERS
    )
    return convolution({"kernel": (3, WIDTH, HIDDEN)}, convolve)


@jax.custom_vjp
def product(x, kernel):
    return x @ kernel


product.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda kept, g: (g @ kept[1].T, kept[0].T @ g),
)


def wrapped(call):
    def apply_fn(v, x):
        return jnp.tanh(call(x, v["in"])) @ v["out"]

    return of_plain(apply_fn, ENDS, (SAMPLES, WIDTH))


def side_by_side():
    def apply_fn(v, x):
        y = jax.vmap(lambda kernel: x @ kernel, out_axes=1)(v["in"])
        return jnp.tanh(y).reshape(len(x), -1) @ v["out"]

    shapes = {"in": (2, WIDTH, HIDDEN), "out": (2 * HIDDEN, 3)}
    return of_plain(apply_fn, shapes, (SAMPLES, WIDTH))


def normed(v):
    return v["gain"][None] * v["way"] / jnp.linalg.norm(v["way"], axis=0, keepdims=True)


def standardized(v):
    centered = v["raw"] - v["raw"].mean(axis=0, keepdims=True)
    return centered / v["raw"].std(axis=0, keepdims=True) * v["gain"][None]


RAW, GAIN = {"raw": (WIDTH, HIDDEN)}, {"gain": (HIDDEN,)}
LOW_RANK = {"first": (WIDTH, 2), "second": (2, HIDDEN)}
HALVES = dict.fromkeys(("left", "right"), (WIDTH, HIDDEN // 2))

NETS = {
    "scanned stack": scanned_stack,
    "stack scanned backwards": functools.partial(scanned_stack, reverse=True),
    "recurrent": gru,
    "recurrent module": functools.partial(of_module, nn.GRUCell),
    "recurrent module, kernels joined": functools.partial(
        of_module, nn.OptimizedLSTMCell
    ),
    "shared by layers": shared_by_layers,
    "tied ends": tied_ends,
    "used twice": twice,
    "embedding": functools.partial(embedding, is_tied=False),
    "tied embedding": functools.partial(embedding, is_tied=True),
    "depthwise convolution": functools.partial(grouped, WIDTH),
    "grouped convolution": functools.partial(grouped, 2),
    "transposed convolution": transposed,
    "checkpoint": functools.partial(wrapped, jax.checkpoint(jnp.matmul)),
    "custom derivative": functools.partial(wrapped, product),
    "side by side": side_by_side,
    "direction and norm": lambda: between_ends(
        normed, {"way": (WIDTH, HIDDEN), "gain": (HIDDEN,)}
    ),
    "low-rank product added": lambda: between_ends(
        lambda v: v["raw"] + v["first"] @ v["second"] * 0.5, RAW | LOW_RANK
    ),
    "scaled": lambda: between_ends(lambda v: v["raw"].T[:, ::-1].T * 0.3, RAW),
    "divided and negated": lambda: between_ends(
        lambda v: 1.0 - v["raw"] / (2.0 + jnp.square(v["gain"]))[None], RAW | GAIN
    ),
    "standardized": lambda: between_ends(standardized, RAW | GAIN),
    "joined": lambda: between_ends(
        lambda v: jnp.concatenate([v["left"], v["right"]], axis=1), HALVES
    ),
}
