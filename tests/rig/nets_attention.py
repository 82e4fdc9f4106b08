"""Rows of the conformance table: attention in the forms in use."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import zoo
from conformance import plain, positions, Row
from jax import lax
from nets_feedforward import dense, layer_norm, rms_norm

HEADS, SIZE, WIDTH = 3, 4, 6

ATTENTION = "heads 3, query/key 4 per heads, value 4 per heads"


def attend(q, k, v, bias=None):
    """Attention of (batch, tokens, heads, channels), to (batch, tokens, all)."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(scores if bias is None else scores + bias)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*q.shape[:2], -1)


def projected(leaf, name, x, heads=HEADS, size=SIZE):
    return dense(leaf, name, x, heads * size).reshape(*x.shape[:-1], heads, size)


def three(leaf, x):
    return [projected(leaf, name, x) for name in ("query", "key", "value")]


def separate(leaf, x):
    return dense(leaf, "out", attend(*three(leaf, x)), 5)


def unbiased(leaf, x):
    """Kernels of three axes, no biases."""
    q, k, v = (
        jnp.einsum("btc,chd->bthd", x, leaf(f"{name}/kernel", WIDTH, HEADS, SIZE))
        for name in ("query", "key", "value")
    )
    y = attend(q, k, v).reshape(*x.shape[:2], HEADS, SIZE)
    return jnp.einsum("bthd,hdc->btc", y, leaf("out/kernel", HEADS, SIZE, 5))


def parted(leaf, x):
    """`3 h d`, taken apart by split."""
    fused = dense(leaf, "qkv", x, 3 * HEADS * SIZE)
    shape = (*x.shape[:2], HEADS, SIZE)
    return [part.reshape(shape) for part in jnp.split(fused, 3, axis=-1)]


def sliced(leaf, x):
    """`3 h d`, taken apart by slices."""
    fused, n = dense(leaf, "qkv", x, 3 * HEADS * SIZE), HEADS * SIZE
    parts = fused[..., :n], fused[..., n : 2 * n], fused[..., 2 * n :]
    return [part.reshape(*x.shape[:2], HEADS, SIZE) for part in parts]


def indexed(leaf, x):
    """`3 h d`, taken apart by integer index."""
    fused = dense(leaf, "qkv", x, 3 * HEADS * SIZE)
    fused = fused.reshape(*x.shape[:2], 3, HEADS, SIZE)
    return [fused[:, :, i] for i in range(3)]


def led(leaf, x):
    """`3 h d`, the three brought to the front and unpacked."""
    fused = dense(leaf, "qkv", x, 3 * HEADS * SIZE)
    fused = fused.reshape(*x.shape[:2], 3, HEADS, SIZE)
    return list(jnp.moveaxis(fused, 2, 0))


def by_head(leaf, x):
    """`h 3 d`, taken apart by index."""
    fused = dense(leaf, "qkv", x, HEADS * 3 * SIZE)
    fused = fused.reshape(*x.shape[:2], HEADS, 3, SIZE)
    return [fused[:, :, :, i] for i in range(3)]


def by_head_split(leaf, x):
    """`h (3 d)`, every head's share taken apart by split."""
    fused = dense(leaf, "qkv", x, HEADS * 3 * SIZE)
    return jnp.split(fused.reshape(*x.shape[:2], HEADS, 3 * SIZE), 3, axis=-1)


def innermost(leaf, x):
    """`(h d) 3`."""
    fused = dense(leaf, "qkv", x, HEADS * SIZE * 3)
    fused = fused.reshape(*x.shape[:2], HEADS, SIZE, 3)
    return [fused[..., i] for i in range(3)]


def four_axes(leaf, x):
    """One kernel of four axes, one product for all."""
    kernel = leaf("qkv/kernel", 3, WIDTH, HEADS, SIZE)
    q, k, v = jnp.einsum("btc,nchd->nbthd", x, kernel)
    return [q, k, v]


def fused(parts):
    return lambda leaf, x: dense(leaf, "out", attend(*parts(leaf, x)), 5)


def keys_and_values_fused(leaf, x, context):
    """Cross-attention: queries of one input, keys and values of another."""
    q = projected(leaf, "query", x)
    both = dense(leaf, "kv", context, 2 * HEADS * SIZE)
    k, v = jnp.moveaxis(both.reshape(*context.shape[:2], 2, HEADS, SIZE), 2, 0)
    return dense(leaf, "out", attend(q, k, v), 5)


def masked(leaf, x, mask):
    """A causal mask, and one of the input."""
    causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
    q, k, v = three(leaf, x)
    bias = jnp.where(causal & (mask > 0)[:, None, None], 0.0, -1e9)
    return dense(leaf, "out", attend(q, k, v, bias), 5)


def relative_bias(leaf, x):
    """A table of biases by distance, one column per head."""
    n = x.shape[1]
    distance = np.arange(n)[:, None] - np.arange(n)[None] + n - 1
    bias = jnp.moveaxis(leaf("distance/kernel", 2 * n - 1, HEADS)[distance], -1, 0)
    return dense(leaf, "out", attend(*three(leaf, x), bias), 5)


def slopes(leaf, x):
    """Every head has its constant slope of distance: heads have places."""
    n = x.shape[1]
    distance = np.abs(np.arange(n)[:, None] - np.arange(n)[None])
    bias = -(2.0 ** -np.arange(1, HEADS + 1))[:, None, None] * distance
    return dense(leaf, "out", attend(*three(leaf, x), bias.astype(np.float32)), 5)


def normalized(leaf, x):
    """Queries and keys are normalised with one scale for all heads."""
    q, k, v = three(leaf, x)
    q, k = layer_norm(leaf, "query_norm", q), layer_norm(leaf, "key_norm", k)
    return dense(leaf, "out", attend(q, k, v), 5)


def grouped_queries(leaf, x, kv_heads=2, queries=3):
    """Each key/value head serves several query heads, by einsum."""
    q = projected(leaf, "query", x, kv_heads * queries)
    q = q.reshape(*x.shape[:2], kv_heads, queries, SIZE)
    k, v = (projected(leaf, name, x, kv_heads) for name in ("key", "value"))
    scores = jax.nn.softmax(jnp.einsum("bqgnd,bkgd->bgnqk", q, k))
    y = jnp.einsum("bgnqk,bkgd->bqgnd", scores, v).reshape(*x.shape[:2], -1)
    return dense(leaf, "out", y, 5)


def repeated_keys(leaf, x):
    """Each key/value head serves three query heads, by repetition."""
    q = projected(leaf, "query", x, 6)
    k, v = (
        jnp.repeat(projected(leaf, name, x, 2), 3, axis=2) for name in ("key", "value")
    )
    return dense(leaf, "out", attend(q, k, v), 5)


def library_attention(leaf, x):
    """`jax.nn.dot_product_attention` with grouped queries."""
    q = projected(leaf, "query", x, 6)
    k, v = (projected(leaf, name, x, 2) for name in ("key", "value"))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return dense(leaf, "out", y.reshape(*x.shape[:2], -1), 5)


def one_key_head(leaf, x):
    """Multi-query attention: one key and value head for all queries."""
    q = projected(leaf, "query", x)
    k, v = (dense(leaf, name, x, SIZE) for name in ("key", "value"))
    scores = jax.nn.softmax(jnp.einsum("bqhd,bkd->bhqk", q, k))
    y = jnp.einsum("bhqk,bkd->bqhd", scores, v).reshape(*x.shape[:2], -1)
    return dense(leaf, "out", y, 5)


def rotated(x, halves):
    """Rotate pairs of channels by angles that grow with the position."""
    size = x.shape[-1]
    angles = np.arange(x.shape[1])[:, None] * 100.0 ** (-np.arange(size // 2) / size)
    cos, sin = (f(angles).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    if halves:
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def rotary(halves):
    def forward(leaf, x):
        q, k, v = three(leaf, x)
        return dense(leaf, "out", attend(rotated(q, halves), rotated(k, halves), v), 5)

    return forward


def chunked(leaf, x):
    """Keys and values in chunks, with running maxima and sums, by scan."""
    q, k, v = three(leaf, x)
    chunks = [
        jnp.moveaxis(a.reshape(a.shape[0], 4, 2, HEADS, SIZE), 1, 0) for a in (k, v)
    ]

    def step(carry, chunk):
        top, total, mean = carry
        k, v = chunk
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        new = jnp.maximum(top, scores.max(axis=-1))
        powers, decay = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
        total = total * decay + powers.sum(axis=-1)
        mean = mean * decay[..., None] + jnp.einsum("bhqk,bkhd->bhqd", powers, v)
        return (new, total, mean), None

    shape = (x.shape[0], HEADS, x.shape[1])
    start = jnp.full(shape, -1e9), jnp.zeros(shape), jnp.zeros((*shape, SIZE))
    (_, total, mean), _ = lax.scan(step, start, tuple(chunks))
    y = jnp.moveaxis(mean / total[..., None], 1, 2).reshape(*x.shape[:2], -1)
    return dense(leaf, "out", y, 5)


def linear_attention(leaf, x):
    q, k, v = three(leaf, x)
    memory = jnp.einsum("bkhd,bkhe->bhde", jax.nn.softmax(k, axis=1), v)
    y = jnp.einsum("bqhd,bhde->bqhe", nn.elu(q) + 1, memory)
    return dense(leaf, "out", y.reshape(*x.shape[:2], -1), 5)


def vit(leaf, x):
    """Patches by a convolution, a class token, positions, two blocks."""
    kernel = leaf("patch/kernel", 2, 2, 3, 12)
    x = lax.conv_general_dilated(
        x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = x.reshape(x.shape[0], -1, 12)
    token = jnp.broadcast_to(leaf("token/kernel", 1, 1, 12), (x.shape[0], 1, 12))
    x = jnp.concatenate([token, x], axis=1)
    x = x + leaf("position/kernel", 1, x.shape[1], 12)
    for number in range(2):

        def own(name, *shape, number=number):
            return leaf(f"block{number}/{name}", *shape)

        y = layer_norm(own, "norm0", x)
        x = x + dense(own, "out", attend(*indexed_heads(own, y)), 12)
        y = nn.gelu(dense(own, "up", layer_norm(own, "norm1", x), 10 + number))
        x = x + dense(own, "down", y, 12)
    return dense(leaf, "head", layer_norm(leaf, "norm", x)[:, 0], 5)


def indexed_heads(leaf, x):
    return indexed(leaf, x)


def decoder(leaf, tokens):
    """Tied embeddings, RMSNorm, rotations, causal attention and SwiGLU."""
    table = leaf("embedding/kernel", 11, 12)
    x = table[tokens]
    causal = jnp.where(jnp.tril(jnp.ones((x.shape[1],) * 2, bool)), 0.0, -1e9)
    for number in range(2):

        def own(name, *shape, number=number):
            return leaf(f"layer{number}/{name}", *shape)

        q, k, v = three(own, rms_norm(own, "norm0", x))
        y = attend(rotated(q, True), rotated(k, True), v, causal)
        x = x + y @ own("out/kernel", HEADS * SIZE, 12)
        y = rms_norm(own, "norm1", x)
        gate, value = jnp.split(y @ own("gate_up/kernel", 12, 14), 2, axis=-1)
        x = x + (nn.silu(gate) * value) @ own("down/kernel", 7, 12)
    return rms_norm(leaf, "norm", x) @ table.T


def windows(leaf, x):
    """Attention in shifted windows, and a merging of 2 x 2 patches."""
    x = dense(leaf, "embed", x, 12)
    b, h, w, c = x.shape
    y = jnp.roll(layer_norm(leaf, "norm0", x), (-1, -1), axis=(1, 2))
    y = y.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(-1, 4, c)
    index = np.arange(4)
    near = (index[:, None] - index[None]) % 7
    bias = jnp.moveaxis(leaf("distance/kernel", 7, HEADS)[near], -1, 0)
    y = dense(leaf, "out", attend(*indexed(leaf, y), bias), c)
    y = y.reshape(b, h // 2, w // 2, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    x = x + jnp.roll(y.reshape(x.shape), (1, 1), axis=(1, 2))
    x = jnp.concatenate([x[:, i::2, j::2] for j in range(2) for i in range(2)], axis=-1)
    x = layer_norm(leaf, "norm1", x) @ leaf("merge/kernel", 4 * c, 14)
    return dense(leaf, "head", x.mean(axis=(1, 2)), 3)


def perceiver(leaf, x):
    """A few learned queries read the input: they are in no order."""
    latents = leaf("latents/kernel", 5, WIDTH)
    q = projected(leaf, "query", latents[None])
    q = jnp.broadcast_to(q, (x.shape[0], *q.shape[1:]))
    k, v = (projected(leaf, name, x) for name in ("key", "value"))
    y = nn.relu(dense(leaf, "out", attend(q, k, v), 7))
    return dense(leaf, "head", y.mean(axis=1), 3)


TOKENS = (12, 8, WIDTH)
ROTATED = "heads 3, value 4 per heads"

ROWS = {
    "attention, linen": Row(
        zoo.NETS["attention"], f"stream 12, {ATTENTION}, hidden 20"
    ),
    "attention, separate kernels": Row(lambda: plain(separate, TOKENS), ATTENTION),
    "attention, kernels of three axes": Row(lambda: plain(unbiased, TOKENS), ATTENTION),
    **{
        f"fused {parts.__doc__.rstrip('.')}": Row(
            lambda parts=parts: plain(fused(parts), TOKENS), ATTENTION
        )
        for parts in (
            parted,
            sliced,
            indexed,
            led,
            by_head,
            by_head_split,
            innermost,
            four_axes,
        )
    },
    "cross-attention": Row(
        lambda: plain(keys_and_values_fused, TOKENS, (12, 6, 5)), ATTENTION
    ),
    "masked attention": Row(lambda: plain(masked, TOKENS, (12, 8)), ATTENTION),
    "relative-position biases": Row(lambda: plain(relative_bias, TOKENS), ATTENTION),
    "slopes of distance": Row(
        lambda: plain(slopes, TOKENS),
        "heads 3 fixed, query/key 4 per heads, value 4 per heads",
    ),
    "normalized queries and keys": Row(
        lambda: plain(normalized, TOKENS), "heads 3, query/key 4, value 4 per heads"
    ),
    "grouped queries": Row(
        lambda: plain(grouped_queries, TOKENS),
        "key/value 2, queries 3 per key/value, query/key 4 per key/value, "
        "value 4 per key/value",
    ),
    "grouped queries, repeated keys": Row(
        lambda: plain(repeated_keys, TOKENS),
        "key/value 2, queries 3 per key/value, query/key 4 per key/value, "
        "value 4 per key/value",
    ),
    "dot_product_attention": Row(
        lambda: plain(library_attention, TOKENS),
        "key/value 2, queries 3 per key/value, query/key 4 per key/value, "
        "value 4 per key/value",
    ),
    "one key head": Row(
        lambda: plain(one_key_head, TOKENS), "heads 3, query/key 4, value 4"
    ),
    "rotations of halves": Row(lambda: plain(rotary(True), TOKENS), ROTATED),
    "rotations of neighbours": Row(lambda: plain(rotary(False), TOKENS), ROTATED),
    "attention in chunks": Row(lambda: plain(chunked, TOKENS), ATTENTION),
    "linear attention": Row(lambda: plain(linear_attention, TOKENS), ATTENTION),
    "ViT": Row(
        lambda: plain(vit, (24, 4, 4, 3)),
        "stream 12, heads0 3, query/key0 4 per heads0, value0 4 per heads0, hidden0 10,"
        " heads1 3, query/key1 4 per heads1, value1 4 per heads1, hidden1 11",
    ),
    "decoder": Row(
        lambda: plain(decoder, positions((12, 6), 11)),
        "stream 12, heads0 3, value0 4 per heads0, hidden0 7, heads1 3, "
        "value1 4 per heads1, hidden1 7",
    ),
    "windows and patch merging": Row(
        lambda: plain(windows, (24, 4, 4, 3)), f"stream 12, {ATTENTION}, merged 14"
    ),
    "learned queries": Row(
        lambda: plain(perceiver, TOKENS),
        f"latents 5, width 6, {ATTENTION}, features 7",
        blind="width",
    ),
}
