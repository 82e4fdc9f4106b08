"""Small networks with less usual symmetries: nesting, parts, stacks, positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from nets import Net, random_leaves

from jmudsc import paths


class Transformer(nn.Module):
    """One block: LayerNorm, attention, dropout and an MLP on a residual stream."""

    qk_norm: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(12, name="embed")(x)
        y = nn.LayerNorm(name="norm0")(x)
        x = x + nn.MultiHeadDotProductAttention(
            num_heads=3,
            qkv_features=12,
            normalize_qk=self.qk_norm,
            dropout_rate=0.5,
            deterministic=True,
            name="attention",
        )(y)
        y = nn.Dense(20, name="up")(nn.LayerNorm(name="norm1")(x))
        y = nn.Dropout(0.5, deterministic=True)(nn.gelu(y))
        x = x + nn.Dense(12, name="down")(y)
        return nn.Dense(5, name="head")(nn.LayerNorm(name="norm2")(x).mean(axis=1))


class Grouped(nn.Module):
    """Two convolutions with GroupNorm of 4 groups between them."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(12, (3, 3), name="conv0")(x)
        x = nn.relu(nn.GroupNorm(num_groups=4, name="norm")(x))
        x = nn.Conv(6, (3, 3), name="conv1")(x)
        return nn.relu(x).mean(axis=(1, 2))


class Remat(nn.Module):
    """Two blocks under `nn.remat`."""

    @nn.compact
    def __call__(self, x):
        for features in (8, 7):
            x = nn.relu(nn.remat(nn.Dense)(features)(x))
        return nn.Dense(3)(x)


def of_linen(module: nn.Module, shape: tuple[int, ...]) -> Net:
    batch = random_leaves({"x": shape}, "batch")["x"]
    tree = jax.eval_shape(module.init, jax.random.key(0), batch)
    shapes = {path: leaf.shape for path, leaf in paths.flatten(tree).items()}
    variables = paths.unflatten(tree, random_leaves(shapes, type(module).__name__))
    return Net(module.apply, variables, batch)


def of_plain(apply_fn, shapes: dict[str, tuple[int, ...]], batch: tuple) -> Net:
    leaves = random_leaves(shapes, "zoo")
    return Net(apply_fn, leaves, random_leaves({"x": batch}, "batch")["x"])


def conv(x, kernel, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def grouped_conv() -> Net:
    def apply_fn(v, x):
        x = nn.relu(conv(conv(x, v["in"]), v["grouped"], groups=3))
        return conv(x, v["out"]).mean(axis=(1, 2))

    shapes = {"in": (1, 1, 3, 12), "grouped": (3, 3, 4, 6), "out": (1, 1, 6, 5)}
    return of_plain(apply_fn, shapes, (2, 4, 4, 3))


def padded_shortcut() -> Net:
    """A stage that widens its stream by zeros, as option A of the CIFAR ResNets."""

    def apply_fn(v, x):
        x = nn.relu(conv(x, v["stem"]))
        y = conv(nn.relu(conv(x, v["down"])), v["up"])
        padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (2, 3)))
        return nn.relu(padded + y).mean(axis=(1, 2)) @ v["head"]

    shapes = {
        "stem": (3, 3, 3, 4),
        "down": (3, 3, 4, 6),
        "up": (3, 3, 6, 9),
        "head": (9, 5),
    }
    return of_plain(apply_fn, shapes, (2, 4, 4, 3))


def branches() -> Net:
    """Two layers side by side, the first of them used twice."""

    def apply_fn(v, x):
        a, b = jnp.tanh(x @ v["a"]), jnp.sin(x @ v["b"])
        return jnp.concatenate([a, b, a], axis=1) @ v["out"]

    return of_plain(apply_fn, {"a": (6, 3), "b": (6, 4), "out": (10, 2)}, (5, 6))


def gated() -> Net:
    """One kernel whose halves are multiplied: SwiGLU."""

    def apply_fn(v, x):
        gate, value = jnp.split(x @ v["in"], 2, axis=1)
        return nn.silu(gate) * value @ v["out"]

    return of_plain(apply_fn, {"in": (6, 10), "out": (5, 2)}, (4, 6))


def tied_embedding() -> Net:
    def apply_fn(v, x):
        return jnp.tanh(x @ v["embedding"]) @ v["embedding"].T

    return of_plain(apply_fn, {"embedding": (7, 5)}, (3, 7))


def recurrence() -> Net:
    """A recurrent layer, unrolled by hand."""

    def apply_fn(v, x):
        h = jnp.tanh(x @ v["in"])
        for _ in range(3):
            h = jnp.tanh(h @ v["again"] + x @ v["in"])
        return h @ v["out"]

    return of_plain(apply_fn, {"in": (4, 6), "again": (6, 6), "out": (6, 2)}, (3, 4))


def scanned() -> Net:
    """Four residual layers by `scan`: hidden units anew in every layer."""

    def apply_fn(v, x):
        def layer(x, kernels):
            up, down = kernels
            return x + jnp.tanh(x @ up) @ down, None

        x, _ = lax.scan(layer, x @ v["in"], (v["up"], v["down"]))
        return x @ v["out"]

    shapes = {"in": (4, 6), "up": (4, 6, 5), "down": (4, 5, 6), "out": (6, 2)}
    return of_plain(apply_fn, shapes, (3, 4))


def stacked() -> Net:
    """Three layers in one kernel, taken by index: units of their own in each."""

    def apply_fn(v, x):
        hidden = [jnp.tanh(x @ v["in"][i]) for i in range(3)]
        return sum(h @ v["out"][i] for i, h in enumerate(hidden))

    return of_plain(apply_fn, {"in": (3, 4, 5), "out": (3, 5, 2)}, (3, 4))


def crossed_stack() -> Net:
    """A stack whose axis comes twice in one value, before it is taken by index."""

    def apply_fn(v, x):
        hidden = [jnp.tanh(x[:, :1] * v["in"][i][None]) for i in range(3)]
        y = sum(h @ v["out"][i] for i, h in enumerate(hidden))
        scale = (v["gain"] * v["in"].sum(axis=1)).sum()
        crossed = v["gain"][:, None, None] * v["in"][None]
        return (y + (crossed[0] @ v["mix"]).sum(axis=0)[None]) * scale

    shapes = {"in": (3, 4), "out": (3, 4, 2), "gain": (3,), "mix": (4, 2)}
    return of_plain(apply_fn, shapes, (3, 4))


def experts() -> Net:
    """Two of four experts chosen by a router, by one-hot masks."""

    def apply_fn(v, x):
        _, chosen = lax.top_k(x @ v["router"], 2)
        mask = jax.nn.one_hot(chosen, 4).sum(axis=1)
        hidden = jnp.tanh(jnp.einsum("bd,edf->bef", x, v["up"]))
        y = jnp.einsum("bef,efo->beo", hidden, v["down"])
        return jnp.einsum("be,beo->bo", mask, y)

    shapes = {"router": (6, 4), "up": (4, 6, 5), "down": (4, 5, 3)}
    return of_plain(apply_fn, shapes, (5, 6))


NETS = {
    "attention": lambda: of_linen(Transformer(), (2, 7, 6)),
    "attention with normalized queries": lambda: of_linen(
        Transformer(qk_norm=True), (2, 7, 6)
    ),
    "group norm": lambda: of_linen(Grouped(), (2, 6, 6, 3)),
    "remat": lambda: of_linen(Remat(), (4, 6)),
    "grouped convolution": grouped_conv,
    "padded shortcut": padded_shortcut,
    "branches": branches,
    "gated": gated,
    "tied embedding": tied_embedding,
    "recurrence": recurrence,
    "scanned layers": scanned,
    "stacked layers": stacked,
    "crossed stack": crossed_stack,
    "experts": experts,
}
