"""Decoders to measure with: one by its width and its number of layers, in bfloat16."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree

SIZES = {
    "10m": (256, 8),
    "30m": (384, 13),
    "100m": (640, 18),
    "300m": (1024, 22),
    "1b": (1792, 25),
}
WORDS, TOKENS = 8192, 128

ApplyFn = Callable[[PyTree, jax.Array], jax.Array]


def shapes(width: int, layers: int) -> PyTree[jax.ShapeDtypeStruct]:
    """Return the variables of a decoder: heads of 64, gated hidden units of 11/4."""
    hidden = 11 * width // 4
    square, wide = (width, width), (width, hidden)
    layer = dict.fromkeys(("query", "key", "value", "out"), square)
    layer |= {"gate": wide, "up": wide, "down": wide[::-1]}
    layer |= dict.fromkeys(("norm0", "norm1"), (width,))
    tree = {
        "layers": {str(n): layer for n in range(layers)},
        "norm": (width,),
        "embedding": (WORDS, width),
        "head": (width, WORDS),
    }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def draw(path: str, shape: tuple[int, ...], seed: int) -> jax.Array:
    """Draw a leaf as a network begins: a scale near one, or a map that keeps spread."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))
    values = jax.random.normal(key, shape) / np.sqrt(shape[0])
    return (1 + values if len(shape) == 1 else values).astype(jnp.bfloat16)


def apply_fn(width: int) -> ApplyFn:
    """Return the function of the variables and tokens, (sequences, tokens)."""
    heads = width // 64

    def apply(variables: PyTree, tokens: jax.Array) -> jax.Array:
        x = variables["embedding"][tokens]
        for number in range(len(variables["layers"])):
            x = _layer(x, variables["layers"][str(number)], heads)
        return _norm(x, variables["norm"]) @ variables["head"]

    return apply


def _layer(x: jax.Array, leaves: Mapping[str, jax.Array], heads: int) -> jax.Array:
    y = _norm(x, leaves["norm0"])
    q, k, v = (
        (y @ leaves[name]).reshape(*y.shape[:2], heads, -1)
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]).astype(q.dtype)
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ leaves["out"]
    y = _norm(x, leaves["norm1"])
    return x + (jax.nn.silu(y @ leaves["gate"]) * (y @ leaves["up"])) @ leaves["down"]


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * scale


def size_of(name: str) -> tuple[int, int]:
    """Return width and layers of what a name stands for: a size, or WIDTHxLAYERS."""
    if name in SIZES:
        return SIZES[name]
    width, _, layers = name.partition("x")
    return int(width), int(layers)


def tokens(sequences: int, batch: int) -> list[Any]:
    """Draw batches of random tokens."""
    drawn = np.random.default_rng(0)
    return [
        jnp.asarray(drawn.integers(WORDS, size=(batch, TOKENS), dtype=np.int32))
        for _ in range(sequences // batch)
    ]
