"""Rows of the conformance table: stacked layers, loops, devices, custom derivatives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import zoo
from conformance import plain, Row
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from nets_attention import attend
from nets_feedforward import dense, rms_norm

LAYERS, STREAM, HEADS, SIZE = 3, 8, 2, 3


def scanned_blocks(leaf, x):
    """Attention and a gated MLP, stacked and scanned over."""
    shapes = {
        "norm0/scale": (STREAM,),
        "query/kernel": (STREAM, HEADS, SIZE),
        "key/kernel": (STREAM, HEADS, SIZE),
        "value/kernel": (STREAM, HEADS, SIZE),
        "out/kernel": (HEADS * SIZE, STREAM),
        "norm1/scale": (STREAM,),
        "gate/kernel": (STREAM, 5),
        "up/kernel": (STREAM, 5),
        "down/kernel": (5, STREAM),
    }
    stacked = {name: leaf(f"blocks/{name}", LAYERS, *s) for name, s in shapes.items()}

    def block(x, layer):
        def own(name, *shape):
            return layer[name]

        y = rms_norm(own, "norm0", x)
        q, k, v = (
            jnp.einsum("btc,chd->bthd", y, layer[f"{name}/kernel"])
            for name in ("query", "key", "value")
        )
        x = x + attend(q, k, v) @ layer["out/kernel"]
        y = rms_norm(own, "norm1", x)
        y = nn.silu(y @ layer["gate/kernel"]) * (y @ layer["up/kernel"])
        return x + y @ layer["down/kernel"], None

    x = dense(leaf, "embed", x, STREAM)
    x, _ = lax.scan(jax.checkpoint(block), x, stacked)
    return dense(leaf, "head", x, 3)


def indexed_in_a_loop(leaf, x):
    """Layers taken from stacked kernels by the counter of a `fori_loop`."""
    up, down = leaf("up/kernel", 3, 6, 5), leaf("down/kernel", 3, 5, 6)
    x = dense(leaf, "in", x, 6)
    return dense(
        leaf,
        "out",
        lax.fori_loop(0, 3, lambda i, x: x + jnp.tanh(x @ up[i]) @ down[i], x),
        2,
    )


def ensemble(leaf, x):
    """Three members side by side, by `vmap`: each has its own order of units."""

    def member(up, bias, down):
        return nn.relu(x @ up + bias) @ down

    shapes = {"up/kernel": (3, 6, 5), "bias": (3, 5), "down/kernel": (3, 5, 2)}
    outputs = jax.vmap(member)(*(leaf(name, *s) for name, s in shapes.items()))
    return outputs.mean(axis=0)


def per_position(leaf, x):
    """A locally connected layer: every place has its own units."""
    y = jnp.einsum("btc,tcf->btf", x, leaf("local/kernel", 4, 3, 5))
    return jnp.einsum("btf,tfo->bo", nn.relu(y), leaf("out/kernel", 4, 5, 2))


def mesh():
    return jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))


def constrained(leaf, x):
    """Hidden units are kept on several devices by a sharding constraint."""
    h = nn.relu(dense(leaf, "in", x, 8))
    h = lax.with_sharding_constraint(h, NamedSharding(mesh(), P(None, "x")))
    return dense(leaf, "out", h, 3)


def tensor_parallel(leaf, x):
    """Each of two devices has half of the hidden units, by `shard_map`."""

    def part(x, up, bias, down):
        return lax.psum(nn.relu(x @ up + bias) @ down, "x")

    split = jax.shard_map(
        part,
        mesh=mesh(),
        in_specs=(P(), P(None, "x"), P("x"), P("x", None)),
        out_specs=P(),
    )
    h = nn.relu(dense(leaf, "in", x, 6))
    kernels = leaf("up/kernel", 6, 10), leaf("bias", 10), leaf("down/kernel", 10, 3)
    return split(h, *kernels)


def data_parallel(leaf, x):
    """Each of two devices has half of the batch, by `shard_map`."""

    def part(x, kernel, bias, out):
        y = nn.relu(x @ kernel + bias) @ out
        return y - lax.pmean(y.mean(axis=0), "x")

    split = jax.shard_map(
        part, mesh=mesh(), in_specs=(P("x"), P(), P(), P()), out_specs=P("x")
    )
    return split(x, leaf("in/kernel", 6, 8), leaf("bias", 8), leaf("out/kernel", 8, 3))


@jax.custom_vjp
def clipped(x):
    return jnp.clip(x, -1, 1)


clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (g,))


def straight_through(leaf, x):
    return dense(leaf, "out", clipped(dense(leaf, "in", x, 8)), 3)


ROWS = {
    "remat": Row(zoo.NETS["remat"], "first 8, second 7"),
    "scanned layers": Row(
        zoo.NETS["scanned layers"], "layers 4 fixed, stream 6, hidden 5 per layers"
    ),
    "scanned blocks": Row(
        lambda: plain(scanned_blocks, (2, 5, 4)),
        "layers 3 fixed, stream 8, heads 2 per layers, query/key 3 per layers heads, "
        "value 3 per layers heads, hidden 5 per layers",
    ),
    "stacked layers, by index": Row(
        zoo.NETS["stacked layers"], "first 5, second 5, third 5"
    ),
    "stacked layers, by the counter of a loop": Row(
        lambda: plain(indexed_in_a_loop, (4, 3)),
        "layers 3 fixed, stream 6, hidden 5 per layers",
    ),
    "ensemble by vmap": Row(
        lambda: plain(ensemble, (4, 6)), "members 3, hidden 5 per members"
    ),
    "locally connected": Row(
        lambda: plain(per_position, (6, 4, 3)), "places 4 fixed, hidden 5 per places"
    ),
    "sharding constraint": Row(lambda: plain(constrained, (4, 6)), "hidden 8"),
    "shard_map, tensor parallel": Row(
        lambda: plain(tensor_parallel, (4, 6)),
        "first 6, devices 2, hidden 5 per devices",
        limit="units stay on a device with one another: the program tells devices "
        "apart from units, though the sum over both would let units cross",
    ),
    "shard_map, data parallel": Row(lambda: plain(data_parallel, (4, 6)), "hidden 8"),
    "custom derivative": Row(lambda: plain(straight_through, (4, 6)), "hidden 8"),
}
