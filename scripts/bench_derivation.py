"""Time and memory of deriving the permutation spec of large models, from shapes alone.

    python scripts/bench_derivation.py

Seconds are the wall time of `infer_spec`, tracing included, in one process that has
imported everything. Memory is what the peak resident size of the process grew by, so a
line counts only what is beyond the lines above it.
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jmudsc import infer_spec
from jmudsc.tables import table

LAYERS, WIDTH, HEADS, HIDDEN, TOKENS, WORDS = 48, 3456, 27, 9216, 128, 32000

Case = tuple[Callable[[Any, Any], Any], Any, Any]


class Block(nn.Module):
    """A pre-normed block of a vision transformer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend, then transform each token."""
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(12)(y)
        y = nn.Dense(3072)(nn.LayerNorm()(x))
        return x + nn.Dense(768)(nn.gelu(y))


class ViT(nn.Module):
    """ViT-B/16 (Dosovitskiy et al. 2021, arXiv:2010.11929, table 1)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Classify images of 224 x 224 pixels."""
        x = nn.Conv(768, (16, 16), (16, 16))(x)
        x = x.reshape(x.shape[0], -1, 768)
        token = self.param("token", nn.initializers.zeros, (1, 1, 768))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        init = nn.initializers.normal(0.02)
        x = x + self.param("position", init, (1, x.shape[1], 768))
        for _ in range(12):
            x = Block()(x)
        return nn.Dense(1000)(nn.LayerNorm()(x)[:, 0])


def vit() -> Case:
    """Return ViT-B/16 with the shapes of its variables and of a batch."""
    images = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(ViT().init, jax.random.key(0), images)
    return ViT().apply, variables, images


def norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Divide by the root of the mean square."""
    return x * lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * scale


def layer(x: jax.Array, leaves: dict[str, jax.Array]) -> jax.Array:
    """One decoder layer: causal attention and a gated MLP."""
    y = norm(x, leaves["norm0"])
    q, k, v = (
        (y @ leaves[name]).reshape(*y.shape[:2], HEADS, -1)
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
    causal = jnp.tril(jnp.ones((TOKENS, TOKENS), bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
    x = x + y @ leaves["out"]
    y = norm(x, leaves["norm1"])
    return x + (nn.silu(y @ leaves["gate"]) * (y @ leaves["up"])) @ leaves["down"]


def decoder(scanned: bool) -> Case:
    """Return a decoder of 7 B parameters, its layers unrolled or scanned over."""
    square, wide = (WIDTH, WIDTH), (WIDTH, HIDDEN)
    shapes = dict.fromkeys(("query", "key", "value", "out"), square)
    shapes |= {"gate": wide, "up": wide, "down": wide[::-1]}
    shapes |= dict.fromkeys(("norm0", "norm1"), (WIDTH,))

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    one = {name: leaf(*shape) for name, shape in shapes.items()}
    stack = {name: leaf(LAYERS, *shape) for name, shape in shapes.items()}
    variables = {
        "embedding": leaf(WORDS, WIDTH),
        "layers": stack if scanned else [one] * LAYERS,
        "norm": leaf(WIDTH),
        "head": leaf(WIDTH, WORDS),
    }

    def apply_fn(v: Any, tokens: jax.Array) -> jax.Array:
        x = v["embedding"][tokens]
        if scanned:
            x, _ = lax.scan(lambda x, leaves: (layer(x, leaves), None), x, v["layers"])
        else:
            for leaves in v["layers"]:
                x = layer(x, leaves)
        return norm(x, v["norm"]) @ v["head"]

    return apply_fn, variables, jax.ShapeDtypeStruct((2, TOKENS), jnp.int32)


def peak() -> float:
    """Return the peak resident size of the process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print a table."""
    cases = {
        "ViT-B/16": vit,
        "decoder, 48 layers, scanned": lambda: decoder(True),
        "decoder, 48 layers, unrolled": lambda: decoder(False),
    }
    rows = []
    for name, make in cases.items():
        case = make()
        count = sum(x.size for x in jax.tree.leaves(case[1]))
        before = peak()
        start = time.perf_counter()
        spec = infer_spec(*case)
        seconds = time.perf_counter() - start
        rows.append(
            [
                name,
                f"{count / 1e9:.2f}",
                str(len(spec.labels)),
                f"{seconds:.2f}",
                f"{peak() - before:.0f}",
            ]
        )
    header = ["model", "parameters, 10^9", "labels", "seconds", "MiB"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
