"""Tiny networks shared by the tests, each with the symmetries it must have.

A network is written once, against a maker of layers, and comes as a plain function over
a dict of arrays, as a linen module and as an NNX module. All three hold the same random
numbers. `made` and `used` say by hand which axes must be permuted together; a site is
written `"conv0/kernel:3"`, the same for all three forms.
"""

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jmudsc import infer_spec, PermutationSpec

FORMS = ("plain", "linen", "nnx")
EPSILON = 1e-5


@dataclass(frozen=True)
class Symmetry:
    """A label that a network must have.

    Attributes:
        size: number of units.
        made: the sites that produce it.
        used: the sites that consume it.
    """

    size: int
    made: frozenset[str]
    used: frozenset[str]

    @property
    def sites(self) -> frozenset[str]:
        return self.made | self.used


@dataclass(frozen=True)
class Architecture:
    """A network before it is a plain function, a linen module or an NNX module."""

    forward: Callable[[Any, jax.Array], jax.Array]
    input_shape: tuple[int, ...]
    input_site: str
    symmetries: tuple[Symmetry, ...]


@dataclass(frozen=True)
class Net:
    """A network that can be run.

    Attributes:
        apply_fn: `(variables, batch) -> outputs`.
        variables: numpy arrays; no bias is zero.
        batch: one batch of inputs.
        input_site: the axis that is summed over against the inputs.
        symmetries: the labels it must have.
    """

    apply_fn: Callable[[Any, Any], Any]
    variables: Any
    batch: Any
    input_site: str = ""
    symmetries: tuple[Symmetry, ...] = ()


def plain_name(path: str) -> str:
    """Return the name of a leaf that all forms share."""
    for prefix in ("params/", "batch_stats/"):
        path = path.removeprefix(prefix)
    return path.removesuffix("/value")


def close(actual: Any, expected: Any) -> bool:
    """Whether two outputs agree to 1e-5 of the largest value."""
    return change(actual, expected) < 1e-5


def change(actual: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest value."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)


@functools.cache
def build(name: str, form: str) -> Net:
    """Return one of `ARCHITECTURES` in one of `FORMS`."""
    architecture = ARCHITECTURES[name]
    leaves = random_leaves(shapes_of(architecture), name)
    apply_fn, variables = _BUILDERS[form](architecture, leaves)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    batch = generator.normal(size=(4, *architecture.input_shape)).astype(np.float32)
    return Net(
        apply_fn,
        variables,
        batch,
        architecture.input_site,
        architecture.symmetries,
    )


@functools.cache
def spec_of(name: str, form: str) -> PermutationSpec:
    """Return the spec that is derived for one of the networks; most tests share it."""
    net = build(name, form)
    return infer_spec(net.apply_fn, net.variables, net.batch)


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the shape of every leaf of a network, without computing anything."""
    shapes: dict[str, tuple[int, ...]] = {}

    def leaf(name: str, *shape: int) -> jax.Array:
        shapes[name] = shape
        return jnp.zeros(shape)

    batch = jax.ShapeDtypeStruct((1, *architecture.input_shape), jnp.float32)
    jax.eval_shape(lambda x: architecture.forward(PlainLayers(leaf), x), batch)
    return shapes


def random_leaves(
    shapes: dict[str, tuple[int, ...]], seed: str
) -> dict[str, np.ndarray]:
    """Draw leaves that tell all units apart and keep most of them alive."""
    generator = np.random.default_rng(zlib.crc32(seed.encode()))
    leaves = {}
    for name, shape in shapes.items():
        draw = generator.normal(size=shape).astype(np.float32)
        match name.rsplit("/")[-1]:
            case "kernel":
                incoming = tuple(range(len(shape) - 1))
                draw -= draw.mean(axis=incoming, keepdims=True)  # no unit always off
                draw *= np.float32(np.sqrt(2 / np.prod(shape[:-1])))
            case "scale":
                draw = 1 + draw / 4
            case "var":
                draw = np.exp(draw / 4)
            case _:
                draw = draw / 4 + np.float32(0.5)
        leaves[name] = draw
    return leaves


# Makers of layers: `conv`, `norm` and `dense`, called with a name and the input.


class PlainLayers:
    def __init__(self, leaf: Callable[..., jax.Array]) -> None:
        self.leaf = leaf

    def dense(self, name, x, features):
        kernel = self.leaf(f"{name}/kernel", x.shape[-1], features)
        return x @ kernel + self.leaf(f"{name}/bias", features)[None]

    def conv(self, name, x, features, size, stride=1, bias=False):
        kernel = self.leaf(f"{name}/kernel", size, size, x.shape[-1], features)
        y = lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if bias:
            y = y + self.leaf(f"{name}/bias", features)[None, None, None]
        return y

    def norm(self, name, x):
        mean, var, scale, bias = (
            self.leaf(f"{name}/{leaf}", x.shape[-1])[None, None, None]
            for leaf in ("mean", "var", "scale", "bias")
        )
        return (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias


class LinenLayers:
    def dense(self, name, x, features):
        return nn.Dense(features, name=name)(x)

    def conv(self, name, x, features, size, stride=1, bias=False):
        return nn.Conv(features, (size, size), stride, use_bias=bias, name=name)(x)

    def norm(self, name, x):
        return nn.BatchNorm(use_running_average=True, epsilon=EPSILON, name=name)(x)


class LinenNet(nn.Module):
    forward: Callable

    @nn.compact
    def __call__(self, x):
        return self.forward(LinenLayers(), x)


class NnxNet(nnx.Module):
    def __init__(self, forward, shape):
        self.forward = forward
        self.rngs = nnx.Rngs(0)
        forward(self, jnp.zeros((1, *shape)))  # makes the layers
        del self.rngs

    def __call__(self, x):
        return self.forward(self, x)

    def layer(self, name, make, *args, **kwargs):
        if not hasattr(self, name):
            setattr(self, name, make(*args, **kwargs, rngs=self.rngs))
        return getattr(self, name)

    def dense(self, name, x, features):
        return self.layer(name, nnx.Linear, x.shape[-1], features)(x)

    def conv(self, name, x, features, size, stride=1, bias=False):
        return self.layer(
            name,
            nnx.Conv,
            x.shape[-1],
            features,
            (size, size),
            stride,
            use_bias=bias,
        )(x)

    def norm(self, name, x):
        return self.layer(
            name,
            nnx.BatchNorm,
            x.shape[-1],
            use_running_average=True,
            epsilon=EPSILON,
        )(x)


def _plain(architecture, leaves):
    def apply_fn(variables, x):
        return architecture.forward(
            PlainLayers(lambda name, *shape: variables[name]), x
        )

    return apply_fn, leaves


def _linen(architecture, leaves):
    variables: dict[str, Any] = {}
    for name, leaf in leaves.items():
        layer, kind = name.split("/")
        collection = "batch_stats" if kind in ("mean", "var") else "params"
        variables.setdefault(collection, {}).setdefault(layer, {})[kind] = leaf
    return LinenNet(architecture.forward).apply, variables


def _nnx(architecture, leaves):
    make = functools.partial(NnxNet, architecture.forward, architecture.input_shape)
    graph, state = nnx.split(nnx.eval_shape(make))
    flat = {(*name.split("/"),): leaf for name, leaf in leaves.items()}
    pure: dict[str, Any] = {}
    for layer, kind in flat:
        pure.setdefault(layer, {})[kind] = flat[layer, kind]
    nnx.replace_by_pure_dict(state, pure)
    return lambda variables, x: nnx.merge(graph, variables)(x), state


_BUILDERS = {"plain": _plain, "linen": _linen, "nnx": _nnx}


# The networks. In each, `made` and `used` are written from knowledge of the layers.


def symmetry(size: int, made: str, used: str) -> Symmetry:
    return Symmetry(size, frozenset(made.split()), frozenset(used.split()))


def normed(conv: str, norm: str) -> str:
    """Return the sites of the channels that come out of a convolution and its norm."""
    leaves = ("scale", "bias", "mean", "var")
    return " ".join([f"{conv}/kernel:3", *(f"{norm}/{leaf}:0" for leaf in leaves)])


def _mlp(net, x):
    x = nn.relu(net.dense("fc0", x, 8))
    x = nn.relu(net.dense("fc1", x, 7))
    return net.dense("fc2", x, 3)


MLP = Architecture(
    _mlp,
    (6,),
    "fc0/kernel:0",
    (
        symmetry(8, "fc0/kernel:1 fc0/bias:0", "fc1/kernel:0"),
        symmetry(7, "fc1/kernel:1 fc1/bias:0", "fc2/kernel:0"),
    ),
)


def _vgg(pool, net, x):
    for number, features in enumerate((8, 8, 8)):
        x = nn.relu(net.conv(f"conv{number}", x, features, 3, bias=True))
        if number != 1:
            x = pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)  # 2 x 2 positions x 8 channels
    x = nn.relu(net.dense("fc0", x, 8))
    return net.dense("fc1", x, 5)


def vgg(pool: Callable) -> Architecture:
    return Architecture(
        functools.partial(_vgg, pool),
        (8, 8, 3),
        "conv0/kernel:2",
        (
            symmetry(8, "conv0/kernel:3 conv0/bias:0", "conv1/kernel:2"),
            symmetry(8, "conv1/kernel:3 conv1/bias:0", "conv2/kernel:2"),
            symmetry(8, "conv2/kernel:3 conv2/bias:0", "fc0/kernel:0"),
            symmetry(8, "fc0/kernel:1 fc0/bias:0", "fc1/kernel:0"),
        ),
    )


def _resnet20(net, x):
    x = nn.relu(net.norm("stem_norm", net.conv("stem", x, 6, 3)))
    for stage in range(3):
        for block in range(3):
            name = f"s{stage}b{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            y = net.conv(f"{name}_conv0", x, 6, 3, stride)
            y = nn.relu(net.norm(f"{name}_norm0", y))
            y = net.norm(f"{name}_norm1", net.conv(f"{name}_conv1", y, 6, 3))
            if stride > 1:
                x = net.conv(f"{name}_short", x, 6, 1, stride)
                x = net.norm(f"{name}_short_norm", x)
            x = nn.relu(x + y)
    return net.dense("head", x.mean(axis=(1, 2)), 5)


def _resnet20_symmetries():
    for stage in range(3):
        blocks = [f"s{stage}b{block}" for block in range(3)]
        for name in blocks:  # inside a block
            made = normed(f"{name}_conv0", f"{name}_norm0")
            yield symmetry(6, made, f"{name}_conv1/kernel:2")
        made = [normed(f"{name}_conv1", f"{name}_norm1") for name in blocks]
        if stage == 0:
            made.append(normed("stem", "stem_norm"))
            readers = blocks
        else:
            made.append(normed(f"s{stage}b0_short", f"s{stage}b0_short_norm"))
            readers = blocks[1:]
        used = [f"{name}_conv0/kernel:2" for name in readers]
        if stage < 2:
            entry = f"s{stage + 1}b0"
            used += [f"{entry}_conv0/kernel:2", f"{entry}_short/kernel:2"]
        else:
            used.append("head/kernel:0")
        yield symmetry(6, " ".join(made), " ".join(used))


RESNET20 = Architecture(
    _resnet20, (8, 8, 3), "stem/kernel:2", tuple(_resnet20_symmetries())
)


def _bottleneck(blocks, widths, outputs, net, x):
    x = nn.relu(net.norm("stem_norm", net.conv("stem", x, widths[0], 7, 2)))
    x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
    for stage, width in enumerate(widths):
        for block in range(blocks[stage]):
            name = f"s{stage}b{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            y = nn.relu(
                net.norm(f"{name}_norm0", net.conv(f"{name}_conv0", x, width, 1))
            )
            y = net.conv(f"{name}_conv1", y, width, 3, stride)
            y = nn.relu(net.norm(f"{name}_norm1", y))
            y = net.norm(f"{name}_norm2", net.conv(f"{name}_conv2", y, 4 * width, 1))
            if block == 0:
                x = net.conv(f"{name}_short", x, 4 * width, 1, stride)
                x = net.norm(f"{name}_short_norm", x)
            x = nn.relu(x + y)
    return net.dense("head", x.mean(axis=(1, 2)), outputs)


def _bottleneck_symmetries(widths):
    """One block a stage, each with a projection: no stream crosses a block."""
    entries = [f"s{stage}b0" for stage in range(len(widths))]
    reads = [f"{name}_conv0/kernel:2 {name}_short/kernel:2" for name in entries]
    yield symmetry(widths[0], normed("stem", "stem_norm"), reads[0])
    for name, width, used in zip(
        entries, widths, [*reads[1:], "head/kernel:0"], strict=True
    ):
        for i in range(2):
            made = normed(f"{name}_conv{i}", f"{name}_norm{i}")
            yield symmetry(width, made, f"{name}_conv{i + 1}/kernel:2")
        made = normed(f"{name}_conv2", f"{name}_norm2")
        made += " " + normed(f"{name}_short", f"{name}_short_norm")
        yield symmetry(4 * width, made, used)


def bottleneck(blocks, widths, outputs, image, symmetries=()) -> Architecture:
    forward = functools.partial(_bottleneck, blocks, widths, outputs)
    return Architecture(forward, (image, image, 3), "stem/kernel:2", tuple(symmetries))


ARCHITECTURES = {
    "mlp": MLP,
    "vgg_max": vgg(nn.max_pool),
    "vgg_avg": vgg(nn.avg_pool),
    "resnet20": RESNET20,
    "bottleneck": bottleneck(
        (1, 1, 1, 1), (4, 4, 4, 4), 5, 32, _bottleneck_symmetries((4, 4, 4, 4))
    ),
}
RESNET50 = bottleneck((3, 4, 6, 3), (64, 128, 256, 512), 1000, 224)
CASES = [(name, form) for name in ARCHITECTURES for form in FORMS]
