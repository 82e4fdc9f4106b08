"""Models: the networks of the shipped experiments, as linen modules.

Every model turns a batch of images into embeddings; what an embedding means is decided
by the class vectors that it is compared with (see `training`). Convolutional networks
are in `convnets`, the transformer in `vit`.
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
from jmudsc.experiments.convnets import (
    BottleneckResNet as BottleneckResNet,
    ResNet as ResNet,
    ResNet20 as ResNet20,
    UNDIFFERENTIATED,
    VGG as VGG,
)
from jmudsc.experiments.vit import ViT as ViT
from jmudsc.types import ApplyFn, UpdateFn

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


# By the names that configs use.
NETWORKS: Mapping[str, type[nn.Module]] = {
    "mlp": MLP,
    "vgg": VGG,
    "resnet": ResNet,
    "resnet20": ResNet20,
    "bottleneck-resnet": BottleneckResNet,
    "vit": ViT,
}


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
        mutable = ["batch_stats", UNDIFFERENTIATED]
        _, new = model.apply(variables, images, train=True, mutable=mutable)
        return {**variables, **new}

    return update


def init(
    model: nn.Module, key: PRNGKeyArray, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Draw variables: He-normal kernels, small positions, all else where norms start.

    One random draw is cut into the kernels: linen's own `init` compiles a program for
    every shape, many seconds for a ResNet.

    Args:
        model: one of `NETWORKS`.
        key: decides the kernels.
        image_shape: height, width and channels of one image.

    Returns:
        `{"params": ..., "batch_stats": ...}`, without `batch_stats` if the model has
        none.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    leaves = paths.flatten(shapes)
    random = [path for path in leaves if path.endswith(("/kernel", "/positions"))]
    draw = np.asarray(_normal(key, sum(leaves[path].size for path in random)))
    ends = np.cumsum([leaves[path].size for path in random])
    drawn = dict(zip(random, np.split(draw, ends[:-1]), strict=True))
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
        is_kernel = path.endswith("/kernel")
        std = math.sqrt(2 / _fan_in(path, shape)) if is_kernel else 0.02
        return jnp.asarray(drawn[path].reshape(shape) * np.float32(std))
    ones = path.endswith(("/scale", "/var"))
    return jnp.asarray(np.full(shape, float(ones), np.float32))


def _fan_in(path: str, shape: tuple[int, ...]) -> int:
    """Return over how many inputs a unit sums; heads are axes of their own."""
    is_headed = path.split("/")[-2] in ("query", "key", "value")
    return shape[0] if is_headed else math.prod(shape[:-1])
