"""Models of the shipped experiments: an MLP and the CIFAR ResNet-20, as linen modules.

Every image model here maps a batch of images to embeddings; what an embedding means is
decided by the class vectors it is compared with (`jmudsc.training`).
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jmudsc import paths
from jmudsc.batch_stats import UpdateFn
from jmudsc.trace import ApplyFn

Images = Float[Array | np.ndarray, "batch height width channels"]
Embedding = Float[Array, "batch outputs"]


class MLP(nn.Module):
    """Dense layers with biases and ReLU between them, on flattened images.

    Attributes:
        widths: units of each hidden layer.
        outputs: length of the embedding.
    """

    widths: Sequence[int]
    outputs: int

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Embedding:
        """Embed images; training mode is the same as evaluation mode."""
        x = images.reshape(images.shape[0], -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.outputs)(x)


class ResNet20(nn.Module):
    """The CIFAR ResNet-20 (He et al. 2016, arXiv:1512.03385, section 4.2).

    Three stages of three blocks; a 3x3 convolution with BatchNorm is the shortcut where
    a stage changes the shape.

    Attributes:
        width: multiplies the 16, 32 and 64 channels of the stages.
        outputs: length of the embedding.
        norm: whether there is BatchNorm; without, convolutions have biases, and what a
            block adds is halved.
    """

    width: int
    outputs: int
    norm: bool = True

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Embedding:
        """Embed images; in training mode by the statistics of the batch itself."""
        x = nn.relu(_ConvNorm(16 * self.width, norm=self.norm)(images, train))
        for stage, channels in enumerate((16, 32, 64)):
            for block in range(3):
                strides = 2 if stage > 0 and block == 0 else 1
                x = _Block(channels * self.width, strides, self.norm)(x, train)
        return nn.Dense(self.outputs)(x.mean(axis=(1, 2)))


class _Block(nn.Module):
    channels: int
    strides: int
    norm: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = nn.relu(_ConvNorm(self.channels, self.strides, self.norm)(x, train))
        y = _ConvNorm(self.channels, norm=self.norm)(y, train)
        if self.strides > 1 or x.shape[-1] != self.channels:
            x = _ConvNorm(self.channels, self.strides, self.norm)(x, train)
        return nn.relu(x + (y if self.norm else y / 2))


class _ConvNorm(nn.Module):
    channels: int
    strides: int = 1
    norm: bool = True

    @nn.compact
    def __call__(self, x: Array | np.ndarray, train: bool) -> Array:
        # On CPUs XLA is slow to differentiate convolutions, so train by products.
        convolve = _convolve if train else None
        x = nn.Conv(
            self.channels,
            (3, 3),
            self.strides,
            use_bias=not self.norm,
            conv_general_dilated=convolve,
        )(x)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9)
        return norm(x) if self.norm else jnp.asarray(x)


def _convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: str, **_: Any
) -> Array:
    """Convolve with a 3x3 kernel, padding "SAME", as three matrix products."""
    stride = strides[0]
    spans = [stride * (-(-size // stride) - 1) + 1 for size in x.shape[1:3]]
    short = [span + 2 - size for span, size in zip(spans, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), *((n // 2, n - n // 2) for n in short), (0, 0)))
    rows, columns = spans
    x = jnp.concatenate([x[:, :, j : j + columns : stride] for j in range(3)], axis=-1)
    kernel = kernel.reshape(3, -1, kernel.shape[-1])
    parts = [x[:, i : i + rows : stride] @ kernel[i] for i in range(3)]
    return parts[0] + parts[1] + parts[2]


@functools.cache
def apply_fn(model: nn.Module) -> ApplyFn:
    """Return `(variables, images) -> embedding` in evaluation mode.

    Equal models give the same function, so that what was jitted with it stays cached.
    """
    return lambda variables, images: model.apply(variables, images)


@functools.cache
def update_fn(model: nn.Module) -> UpdateFn:
    """Return `(variables, images) -> variables` with the batch statistics updated.

    A forward pass in training mode; the parameters are handed on as they are. Equal
    models give the same function.
    """

    def update(variables: PyTree, images: Images) -> PyTree:
        _, new = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return {**variables, **new}

    return update


def init(
    model: nn.Module, key: PRNGKeyArray, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Draw variables: He-normal kernels, all else where BatchNorm starts.

    One random draw is cut into the kernels: linen's own `init` compiles a program for
    every shape, many seconds for a ResNet.

    Args:
        model: one of this file.
        key: decides the kernels.
        image_shape: height, width and channels of one image.

    Returns:
        `{"params": ..., "batch_stats": ...}`, without `batch_stats` if the model has
        none.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves = paths.flatten(shapes)
    kernels = [path for path in leaves if path.endswith("/kernel")]
    draw = np.asarray(_normal(key, sum(leaves[path].size for path in kernels)))
    ends = np.cumsum([leaves[path].size for path in kernels])
    drawn = dict(zip(kernels, np.split(draw, ends[:-1]), strict=True))
    return paths.unflatten(
        shapes,
        {path: _start(path, leaf.shape, drawn) for path, leaf in leaves.items()},
    )


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    return jax.random.normal(key, (count,))


def _start(
    path: str, shape: tuple[int, ...], drawn: Mapping[str, np.ndarray]
) -> Float[Array, "..."]:
    if path in drawn:
        deviation = math.sqrt(2 / math.prod(shape[:-1]))
        return jnp.asarray(drawn[path].reshape(shape) * np.float32(deviation))
    ones = path.endswith(("/scale", "/var"))
    return jnp.asarray(np.full(shape, float(ones), np.float32))
