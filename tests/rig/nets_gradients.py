"""Rows of the conformance table: networks that take a derivative as they compute.

Force fields and energy models are run backwards in every step: their programs have the
transposes of all operations.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from conformance import plain, positions, Row
from jax import lax
from nets_conv import conv, group_norm, IMAGES
from nets_feedforward import dense, layer_norm


def forces(energy):
    """The energy of each input and its derivative."""

    def forward(leaf, x, *more):
        def total(x):
            out = energy(leaf, x, *more)
            return out.sum(), out

        slope, out = jax.grad(total, has_aux=True)(x)
        return out, slope

    return forward


def of_mlp(leaf, x):
    x = jnp.tanh(dense(leaf, "first", x, 8))
    x = nn.silu(dense(leaf, "second", x, 7))
    return dense(leaf, "energy", x, 1)[:, 0]


def of_images(leaf, x):
    x = nn.relu(group_norm(leaf, "norm", conv(leaf, "stem", x, 8), 2))
    x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.softplus(conv(leaf, "conv", x, 6, strides=(2, 2)))
    return dense(leaf, "energy", x.mean(axis=(1, 2)), 1)[:, 0]


def of_groups(leaf, x):
    x = nn.silu(conv(leaf, "stem", x, 12))
    x = nn.silu(conv(leaf, "conv", x, 6, groups=3))
    return dense(leaf, "energy", x.max(axis=(1, 2)), 1)[:, 0]


def of_tokens(leaf, x):
    x = dense(leaf, "in", x, 6)
    y = layer_norm(leaf, "norm", x)
    q, k, v = (
        dense(leaf, name, y, 6).reshape(*y.shape[:-1], 2, 3) for name in ("q", "k", "v")
    )
    scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    y = jnp.einsum("bhqk,bkhd->bqhd", scores, v).reshape(x.shape)
    x = x + dense(leaf, "out", y, 6)
    return dense(leaf, "energy", nn.gelu(dense(leaf, "up", x, 9)), 1).sum(axis=(1, 2))


def of_atoms(leaf, x, senders, receivers):
    """Messages along the edges between atoms are summed at each of them."""
    for number in range(2):
        h = nn.silu(dense(leaf, f"embed{number}", x, 7))
        apart = ((x[senders, :3] - x[receivers, :3]) ** 2).sum(axis=-1, keepdims=True)
        messages = h[senders] * dense(leaf, f"filter{number}", jnp.exp(-apart), 7)
        summed = jax.ops.segment_sum(messages, receivers, x.shape[0])
        x = x + dense(leaf, f"out{number}", summed, x.shape[-1])
    return dense(leaf, "energy", nn.silu(dense(leaf, "last", x, 5)), 1)[:, 0]


def of_layers(leaf, x):
    """Layers are scanned over, and then backwards."""
    stacks = [leaf("up", 4, 6, 9), leaf("down", 4, 9, 6)]

    @jax.checkpoint
    def layer(x, kernels):
        up, down = kernels
        return x + jnp.tanh(x @ up) @ down, None

    x, _ = lax.scan(layer, dense(leaf, "in", x, 6), stacks)
    return dense(leaf, "energy", x, 1)[:, 0]


def of_parts(leaf, x):
    """Gates and values lie side by side; every third unit is summed up apart."""
    gates, values = jnp.split(dense(leaf, "up", x, 12), 2, axis=-1)
    y = nn.sigmoid(gates) * jnp.concatenate([values[:, :2], values[:, 2:] ** 2], -1)
    return dense(leaf, "energy", y, 1)[:, 0]


def slopes_of_slopes(leaf, x):
    """How the energy bends: a Hessian times a vector."""
    slope = jax.grad(lambda x: of_mlp(leaf, x).sum())
    return jax.jvp(slope, (x,), (jnp.ones_like(x),))[1]


ROWS = {
    f"forces, {name}": Row(functools.partial(plain, forces(energy), *batch), labels)
    for name, energy, batch, labels in [
        ("MLP", of_mlp, [(9, 6)], "first 8, second 7"),
        ("images", of_images, [IMAGES], "groups 2, stem 4 per groups, conv 6"),
        (
            "grouped convolution",
            of_groups,
            [IMAGES],
            "groups 3, inputs 4 per groups, outputs 2 per groups",
        ),
        (
            "attention",
            of_tokens,
            [(5, 4, 3)],
            "stream 6, heads 2, query/key 3 per heads, value 3 per heads, up 9",
        ),
        (
            "message passing",
            of_atoms,
            [(8, 4), positions((12,), 8), positions((12,), 7)],
            "first 7, second 7, last 5",
        ),
        (
            "scanned layers",
            of_layers,
            [(9, 5)],
            "layers 4 fixed, stream 6, hidden 9 per layers",
        ),
        ("gates beside values", of_parts, [(9, 5)], "a 2, b 4"),
    ]
} | {
    "curvature of an MLP": Row(
        lambda: plain(slopes_of_slopes, (9, 6)), "first 8, second 7"
    )
}
