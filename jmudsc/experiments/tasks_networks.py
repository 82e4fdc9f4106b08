"""Tasks networks: one kind of trunk, and a head that depends on the task.

All leaves of the head are under `params/head`. A head sums over the channels of the
trunk before it does anything else, so any merged trunk can be read by it.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jmudsc.experiments.convnets import (
    ResNetEncoder as ResNetEncoder,
    VGGEncoder as VGGEncoder,
)
from jmudsc.experiments.tasks import Task

HEAD = "params/head/*"  # the pattern of what is kept separate

# By the names that configs use.
ENCODERS = {"resnet-encoder": ResNetEncoder, "vgg-encoder": VGGEncoder}

Images = Float[Array | np.ndarray, "batch height width channels"]
Features = Float[Array, "batch down across features"]


class TaskNetwork(nn.Module):
    """An encoder, and a head on its feature map.

    Attributes:
        trunk: called as `trunk(images, train)`.
        head: called as `head(features)`.
    """

    trunk: nn.Module
    head: nn.Module

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Array:
        """Compute the output of the head."""
        # `nn.Module` declares no `__call__`, all encoders and heads have one.
        features = self.trunk(images, train)  # pyright: ignore[reportCallIssue]
        return self.head(features)  # pyright: ignore[reportCallIssue]


class Answer(nn.Module):
    """Logits of the mean features.

    Attributes:
        answers: how many.
    """

    answers: int

    @nn.compact
    def __call__(self, features: Features) -> Float[Array, "batch answers"]:
        """Compute logits."""
        return nn.Dense(self.answers)(features.mean(axis=(1, 2)))


class Decoder(nn.Module):
    """A picture of an image's size, through a bottleneck.

    Every position's features are summed up in a few channels; then the picture grows by
    doubling, a 3x3 convolution after each.

    Attributes:
        size: height and width of the picture.
        channels: of the picture.
        code: channels of the bottleneck.
        width: channels of the convolutions.
    """

    size: tuple[int, int]
    channels: int
    code: int = 8
    width: int = 32

    @nn.compact
    def __call__(
        self, features: Features
    ) -> Float[Array, "batch height width channels"]:
        """Compute a picture."""
        x = nn.Conv(self.code, (1, 1))(features)
        while (here := x.shape[1:3]) != self.size:
            x = nn.relu(nn.Conv(self.width, (3, 3))(x))
            rows, columns = (
                min(2 * n, m) for n, m in zip(here, self.size, strict=True)
            )
            x = jax.image.resize(x, (len(x), rows, columns, x.shape[-1]), "nearest")
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        return nn.Conv(self.channels, (3, 3))(x)


def network_of(
    trunk: nn.Module,
    task: Task,
    image_shape: Sequence[int],
    classes: int,
    code: int,
) -> TaskNetwork:
    """Put the head of a task on a trunk.

    Args:
        trunk: an encoder.
        task: which is learned.
        image_shape: height, width and channels of an image.
        classes: how many classes there are.
        code: of the decoder, for tasks whose targets are pictures.

    Returns:
        The network.
    """
    answers = classes if task.answers is None else task.answers
    if answers:
        return TaskNetwork(trunk, Answer(answers))
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    each = jax.ShapeDtypeStruct((1,), jnp.int32)
    made = jax.eval_shape(task.objective.examples, jax.random.key(0), images, each)
    _, *size, channels = made[1].shape
    return TaskNetwork(trunk, Decoder(tuple(size), channels, code))
