"""Rows of the conformance table: dense, gated, recurrent and embedding networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import zoo
from conformance import plain, positions, Row
from jax import lax


def dense(leaf, name, x, features):
    kernel = leaf(f"{name}/kernel", x.shape[-1], features)
    return x @ kernel + leaf(f"{name}/bias", features)


def layer_norm(leaf, name, x):
    x = x - x.mean(axis=-1, keepdims=True)
    x = x * lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5)
    return x * leaf(f"{name}/scale", x.shape[-1]) + leaf(f"{name}/bias", x.shape[-1])


def rms_norm(leaf, name, x):
    scale = leaf(f"{name}/scale", x.shape[-1])
    return x * lax.rsqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * scale


def layer_normed_mlp(leaf, x):
    x = nn.gelu(layer_norm(leaf, "norm0", dense(leaf, "fc0", x, 8)))
    x = nn.gelu(layer_norm(leaf, "norm1", dense(leaf, "fc1", x, 7)))
    return dense(leaf, "fc2", x, 3)


def residual_mlp(leaf, x):
    """Pre-normed residual blocks with squeezed gates on the stream."""
    x = dense(leaf, "embed", x, 8)
    for number in range(2):
        y = nn.silu(
            dense(leaf, f"up{number}", rms_norm(leaf, f"norm{number}", x), 5 + number)
        )
        x = x + nn.sigmoid(dense(leaf, f"down{number}", y, 8)) * leaf(
            f"gain{number}/scale", 8
        )
    return dense(leaf, "head", x, 3)


def fused_glu(leaf, x):
    """Value and gate interleaved in one kernel, taken apart by stride of a reshape."""
    y = dense(leaf, "in", x, 10).reshape(-1, 5, 2)
    return dense(leaf, "out", y[..., 0] * nn.sigmoid(y[..., 1]), 3)


def neighbours_glu(leaf, x):
    """Value and gate interleaved in one kernel, every other unit each."""
    y = dense(leaf, "in", x, 10)
    return dense(leaf, "out", y[:, ::2] * nn.sigmoid(y[:, 1::2]), 3)


def maxout(leaf, x):
    """Each unit is the largest of 3 pieces, in any order anew for every unit."""
    y = dense(leaf, "in", x, 15).reshape(-1, 5, 3).max(axis=-1)
    return dense(leaf, "out", y, 4)


def dense_connections(leaf, x):
    """Each layer reads all before it, by concatenation."""
    for number, features in enumerate((3, 4, 5)):
        y = nn.relu(dense(leaf, f"fc{number}", x, features))
        x = jnp.concatenate([x, y], axis=-1)
    return dense(leaf, "head", x, 2)


def tied_autoencoder(leaf, x):
    kernel = leaf("in/kernel", 6, 8)
    inner = leaf("inner/kernel", 8, 4)
    h = nn.relu(nn.relu(x @ kernel) @ inner)
    return nn.relu(h @ inner.T) @ kernel.T


def weight_normed(leaf, x):
    """The kernels are directions and lengths."""
    for name, features in (("fc0", 8), ("fc1", 3)):
        kernel = leaf(f"{name}/kernel", x.shape[-1], features)
        kernel = kernel / jnp.sqrt((kernel**2).sum(axis=0, keepdims=True))
        x = nn.relu(x @ (kernel * leaf(f"{name}/scale", features)))
    return x


def low_rank(leaf, x):
    """A kernel with a trained low-rank addition: the rank is in no order."""
    h = nn.relu(dense(leaf, "in", x, 8))
    added = leaf("down/kernel", 8, 2) @ leaf("up/kernel", 2, 5)
    return dense(leaf, "out", nn.relu(h @ (leaf("fc/kernel", 8, 5) + added)), 3)


def complex_mlp(leaf, x):
    kernel = lax.complex(leaf("re/kernel", 6, 8), leaf("im/kernel", 6, 8))
    h = x.astype(jnp.complex64) @ kernel
    return nn.relu(jnp.abs(h) + leaf("bias", 8)) @ leaf("out/kernel", 8, 3)


def quantized(leaf, x):
    """Products of 8-bit integers, rescaled per output unit."""

    def whole(x):
        return jnp.clip(jnp.round(x * 64), -127, 127).astype(jnp.int8)

    for name, features in (("fc0", 8), ("fc1", 3)):
        kernel = whole(leaf(f"{name}/kernel", x.shape[-1], features))
        y = lax.dot(whole(jnp.tanh(x)), kernel, preferred_element_type=jnp.int32)
        x = y.astype(jnp.float32) / 4096 * leaf(f"{name}/scale", features)
    return x


def lstm(leaf, x):
    """A long short-term memory, scanned over time; gates fused in one kernel."""
    inputs, again = leaf("in/kernel", 3, 20), leaf("again/kernel", 5, 20)
    bias = leaf("bias", 20)

    def step(carry, x):
        c, h = carry
        i, f, g, o = jnp.split(x @ inputs + h @ again + bias, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (c, h), h

    start = jnp.zeros((x.shape[0], 5))
    _, hs = lax.scan(step, (start, start), jnp.swapaxes(x, 0, 1))
    return dense(leaf, "out", hs, 2)


def bidirectional(leaf, x):
    """Two recurrences, one over reversed time, concatenated."""

    def run(name, x):
        again = leaf(f"{name}/again/kernel", 4, 4)

        def step(h, y):
            h = jnp.tanh(y + h @ again)
            return h, h

        y = jnp.swapaxes(dense(leaf, name, x, 4), 0, 1)
        return lax.scan(step, jnp.zeros((x.shape[0], 4)), y)[1]

    back = jnp.flip(run("back", jnp.flip(x, axis=1)), axis=0)
    return dense(leaf, "out", jnp.concatenate([run("there", x), back], axis=-1), 2)


def linear_recurrence(leaf, x):
    """A diagonal state-space layer by an associative scan."""
    decay = nn.sigmoid(leaf("decay/scale", 6))
    u = x @ leaf("in/kernel", 3, 6)

    def combine(a, b):
        return a[0] * b[0], b[0] * a[1] + b[1]

    decays = jnp.broadcast_to(decay, u.shape)
    _, h = lax.associative_scan(combine, (decays, u), axis=1)
    return nn.relu(h) @ leaf("out/kernel", 6, 2)


def equilibrium(leaf, x):
    """A fixed point, found by a `while` loop."""
    u, again = x @ leaf("in/kernel", 3, 6), leaf("again/kernel", 6, 6) / 4

    def goes_on(state):
        number, z, before = state
        return (number < 30) & (jnp.abs(z - before).max() > 1e-6)

    def step(state):
        number, z, _ = state
        return number + 1, jnp.tanh(z @ again + u), z

    _, z, _ = lax.while_loop(goes_on, step, (0, jnp.tanh(u), jnp.zeros_like(u)))
    return z @ leaf("out/kernel", 6, 2)


def branched(leaf, x):
    """One of two layers, by a `cond` on the input."""
    h = nn.relu(dense(leaf, "in", x, 6))
    one, other = leaf("one/kernel", 6, 5), leaf("other/kernel", 6, 5)
    y = lax.cond(
        x.sum() > 0, lambda h: jnp.tanh(h @ one), lambda h: jnp.sin(h @ other), h
    )
    return dense(leaf, "out", y, 2)


def word_vectors(leaf, tokens):
    """Embeddings summed over a text, read by the same table."""
    table = leaf("embedding/kernel", 11, 6)
    h = nn.relu(dense(leaf, "fc", table[tokens].mean(axis=1), 6))
    return nn.relu(dense(leaf, "back", h, 6)) @ table.T


def one_hot_words(leaf, tokens):
    table = leaf("embedding/kernel", 11, 6)
    return dense(leaf, "out", nn.relu(jax.nn.one_hot(tokens, 11) @ table), 3)


def codebook(leaf, x):
    """The nearest of 7 codes replaces a vector: the codes are in no order."""
    z, codes = dense(leaf, "in", x, 4), leaf("codes", 7, 4)
    distances = ((z[:, None] - codes[None]) ** 2).sum(axis=-1)
    return dense(leaf, "out", codes[jnp.argmin(distances, axis=-1)], 3)


def message_passing(leaf, x, edges):
    """A graph network: messages are summed at the ends of edges."""
    h = nn.relu(dense(leaf, "embed", x, 6))
    for number in range(2):
        message = nn.relu(dense(leaf, f"message{number}", h, 5))[edges[0]]
        heard = jax.ops.segment_sum(message, edges[1], num_segments=x.shape[0])
        h = h + dense(leaf, f"update{number}", heard, 6)
    return dense(leaf, "head", h.max(axis=0, keepdims=True), 2)


def sorted_pool(leaf, x):
    """The three largest values of every unit over a set."""
    h = jnp.sort(dense(leaf, "in", x, 5), axis=1)[:, -3:]
    return dense(leaf, "out", h.sum(axis=1), 2)


def competing(leaf, x):
    """Only the two units that are most active stay on."""
    h = nn.relu(dense(leaf, "in", x, 6))
    smallest = lax.top_k(h, 2)[0][:, -1:]
    return dense(leaf, "out", jnp.where(h >= smallest, h, 0), 3)


ROWS = {
    "MLP with LayerNorm": Row(
        lambda: plain(layer_normed_mlp, (5, 6)), "first 8, second 7"
    ),
    "residual MLP": Row(
        lambda: plain(residual_mlp, (5, 6)), "stream 8, hidden0 5, hidden1 6"
    ),
    "SwiGLU": Row(zoo.NETS["gated"], "hidden 5"),
    "fused GLU, interleaved": Row(lambda: plain(fused_glu, (5, 6)), "hidden 5"),
    "fused GLU, neighbours": Row(lambda: plain(neighbours_glu, (5, 6)), "hidden 5"),
    "maxout": Row(lambda: plain(maxout, (5, 6)), "hidden 5, pieces 3 per hidden"),
    "dense connections": Row(
        lambda: plain(dense_connections, (5, 6)), "first 3, second 4, third 5"
    ),
    "tied autoencoder": Row(
        lambda: plain(tied_autoencoder, (5, 6)), "outer 8, inner 4"
    ),
    "tied embedding": Row(zoo.NETS["tied embedding"], "hidden 5"),
    "weight normalization": Row(lambda: plain(weight_normed, (5, 6)), "hidden 8"),
    "low rank": Row(
        lambda: plain(low_rank, (5, 6)), "first 8, second 5, rank 2", blind="rank"
    ),
    "complex MLP": Row(lambda: plain(complex_mlp, (5, 6)), "hidden 8"),
    "8-bit MLP": Row(lambda: plain(quantized, (5, 6)), "hidden 8"),
    "recurrence, unrolled": Row(zoo.NETS["recurrence"], "hidden 6"),
    "LSTM": Row(lambda: plain(lstm, (4, 7, 3)), "hidden 5"),
    "bidirectional recurrence": Row(
        lambda: plain(bidirectional, (4, 7, 3)), "back 4, there 4"
    ),
    "state-space layer": Row(lambda: plain(linear_recurrence, (4, 7, 3)), "hidden 6"),
    "equilibrium model": Row(lambda: plain(equilibrium, (4, 3)), "hidden 6"),
    "branches of a cond": Row(lambda: plain(branched, (4, 3)), "first 6, second 5"),
    "word vectors": Row(
        lambda: plain(word_vectors, positions((4, 5), 11)), "vector 6, hidden 6"
    ),
    "one-hot words": Row(lambda: plain(one_hot_words, positions((4,), 11)), "vector 6"),
    "codebook": Row(lambda: plain(codebook, (9, 6)), "vector 4, codes 7"),
    "graph network": Row(
        lambda: plain(message_passing, (8, 3), positions((2, 12), 8)),
        "stream 6, message0 5, message1 5",
    ),
    "sorted pooling": Row(lambda: plain(sorted_pool, (4, 6, 3)), "hidden 5"),
    "winners take all": Row(lambda: plain(competing, (4, 6)), "hidden 6"),
}
