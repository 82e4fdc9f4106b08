"""Rows of the conformance table: mixtures of experts."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from conformance import plain, Row
from jax import lax
from nets_feedforward import dense

EXPERTS, HIDDEN, WIDTH = 4, 5, 6


def logits(leaf, x):
    return dense(leaf, "router", x, EXPERTS)


def kernels(leaf):
    up = leaf("up/kernel", EXPERTS, WIDTH, HIDDEN)
    return up, leaf("down/kernel", EXPERTS, HIDDEN, 3)


def all_outputs(leaf, x):
    """What every expert makes of every input."""
    up, down = kernels(leaf)
    hidden = nn.relu(jnp.einsum("bd,edf->bef", x, up) + leaf("bias", EXPERTS, HIDDEN))
    return jnp.einsum("bef,efo->beo", hidden, down)


def soft(leaf, x):
    weights = jax.nn.softmax(logits(leaf, x))
    return jnp.einsum("be,beo->bo", weights, all_outputs(leaf, x))


def one_hot(leaf, x):
    """The two best, by one-hot masks."""
    scores, chosen = lax.top_k(logits(leaf, x), 2)
    mask = jax.nn.one_hot(chosen, EXPERTS)
    weights = jnp.einsum("bk,bke->be", jax.nn.softmax(scores), mask)
    return jnp.einsum("be,beo->bo", weights, all_outputs(leaf, x))


def dispatched(leaf, x):
    """The best, with room for 3 inputs at every expert; others are dropped."""
    weights = jax.nn.softmax(logits(leaf, x))
    mask = jax.nn.one_hot(jnp.argmax(weights, axis=-1), EXPERTS)
    place = (jnp.cumsum(mask, axis=0) - 1) * mask
    slot = jax.nn.one_hot(place.sum(axis=-1).astype(jnp.int32), 3)
    slot = slot * mask.sum(axis=-1, keepdims=True)
    dispatch = jnp.einsum("be,bc->bec", mask, slot)
    up, down = kernels(leaf)
    hidden = nn.relu(jnp.einsum("bec,bd,edf->ecf", dispatch, x, up))
    outputs = jnp.einsum("ecf,efo->eco", hidden, down)
    return jnp.einsum("be,bec,eco->bo", weights, dispatch, outputs)


def gathered_outputs(leaf, x):
    """The outputs of the two best are gathered."""
    scores, chosen = lax.top_k(logits(leaf, x), 2)
    y = jnp.take_along_axis(all_outputs(leaf, x), chosen[..., None], axis=1)
    return jnp.einsum("bk,bko->bo", jax.nn.softmax(scores), y)


def scattered_weights(leaf, x):
    """The weights of the two best are scattered among zeros."""
    scores, chosen = lax.top_k(logits(leaf, x), 2)
    rows = jnp.arange(x.shape[0])[:, None]
    weights = jnp.zeros((x.shape[0], EXPERTS))
    weights = weights.at[rows, chosen].set(jax.nn.softmax(scores), unique_indices=True)
    return jnp.einsum("be,beo->bo", weights, all_outputs(leaf, x))


def sorted_experts(leaf, x):
    """The two best, by sorting all."""
    scores = logits(leaf, x)
    chosen = jnp.argsort(-scores, axis=-1)[:, :2]
    weights = jax.nn.softmax(jnp.take_along_axis(scores, chosen, axis=-1))
    y = jnp.take_along_axis(all_outputs(leaf, x), chosen[..., None], axis=1)
    return jnp.einsum("bk,bko->bo", weights, y)


def gathered_kernels(leaf, x):
    """The kernels of the two best are gathered for every input."""
    scores, chosen = lax.top_k(logits(leaf, x), 2)
    up, down = (kernel[chosen] for kernel in kernels(leaf))
    bias = leaf("bias", EXPERTS, HIDDEN)[chosen]
    hidden = nn.relu(jnp.einsum("bd,bkdf->bkf", x, up) + bias)
    y = jnp.einsum("bkf,bkfo->bko", hidden, down)
    return jnp.einsum("bk,bko->bo", jax.nn.softmax(scores), y)


def switched(leaf, x):
    """One expert an input, its kernels taken inside a `vmap`."""
    scores = jax.nn.softmax(logits(leaf, x))
    best = jnp.argmax(scores, axis=-1)
    up, down = kernels(leaf)

    def one(x, expert, score):
        return score[expert] * (nn.relu(x @ up[expert]) @ down[expert])

    return jax.vmap(one)(x, best, scores)


def mapped(leaf, x):
    """Tokens of a sequence, one expert each, with a shared expert for all."""
    tokens = x.reshape(-1, WIDTH)
    best = jnp.argmax(logits(leaf, tokens), axis=-1)
    up, down = (kernel[best] for kernel in kernels(leaf))
    gate = leaf("gate/kernel", EXPERTS, WIDTH, HIDDEN)[best]
    hidden = jnp.einsum("td,tdf->tf", tokens, up)
    hidden = hidden * nn.silu(jnp.einsum("td,tdf->tf", tokens, gate))
    y = jnp.einsum("tf,tfo->to", hidden, down).reshape(*x.shape[:2], 3)
    return y + dense(leaf, "shared", nn.relu(dense(leaf, "common", x, 7)), 3)


def sorted_inputs(leaf, x):
    """Inputs are sorted by their expert, and runs of them meet its kernels."""
    scores = jax.nn.softmax(logits(leaf, x))
    best = jnp.argmax(scores, axis=-1)
    order = jnp.argsort(best)
    sizes = jnp.bincount(best, length=EXPERTS)
    up, down = kernels(leaf)
    y = lax.ragged_dot(nn.relu(lax.ragged_dot(x[order], up, sizes)), down, sizes)
    return scores.max(axis=-1)[:, None] * y[jnp.argsort(order)]


INPUTS = (9, WIDTH)
BOTH = "experts 4, hidden 5 per experts"

ROWS = {
    f"experts, {name}": Row(lambda forward=forward: plain(forward, INPUTS), BOTH)
    for name, forward in {
        "soft": soft,
        "one-hot": one_hot,
        "dispatched": dispatched,
        "outputs gathered": gathered_outputs,
        "weights scattered": scattered_weights,
        "sorted": sorted_experts,
        "kernels gathered": gathered_kernels,
        "kernels taken in a vmap": switched,
    }.items()
} | {
    "experts, inputs sorted": Row(
        lambda: plain(sorted_inputs, INPUTS),
        "experts 4 fixed, hidden 5 per experts",
        blind="hidden",
        limit="inputs come in the order of the numbers of their experts, and it is not "
        "followed that this order is undone again",
    ),
    "experts, tokens": Row(lambda: plain(mapped, (3, 4, WIDTH)), f"{BOTH}, common 7"),
}
