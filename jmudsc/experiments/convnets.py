"""Convnets: the convolutional networks of the experiments, VGG and kinds of ResNet.

Each is made of one layer, a convolution with the norm that follows it. Encoders end in
a feature map, for the heads of several tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NORMS = ("batch", "group", "layer")
# A collection that is mutable where training mode is not for the sake of gradients.
UNDIFFERENTIATED = "undifferentiated"

Images = Float[Array | np.ndarray, "batch height width channels"]
Embedding = Float[Array, "batch outputs"]
Features = Float[Array, "batch down across features"]


class VGG(nn.Module):
    """Stages of 3x3 convolutions, each ended by 2x2 max pooling, and one dense layer.

    The default channels are those of VGG-11 (Simonyan and Zisserman 2015,
    arXiv:1409.1556, table 1).

    Attributes:
        outputs: length of the embedding.
        channels: of each convolution, a tuple for each stage.
        norm: one of `NORMS`, or None for convolutions with biases and no norm.
        groups: of a group norm.
    """

    outputs: int
    channels: Sequence[Sequence[int]] = (
        (64,),
        (128,),
        (256, 256),
        (512, 512),
        (512, 512),
    )
    norm: str | None = "batch"
    groups: int = 8

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Embedding:
        """Embed images; in training mode by the statistics of the batch itself."""
        x = jnp.asarray(images)
        for stage in self.channels:
            for channels in stage:
                layer = _ConvNorm(channels, norm=self.norm, groups=self.groups)
                x = nn.relu(layer(x, train))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(self.outputs)(x.reshape(x.shape[0], -1))


class ResNet20(nn.Module):
    """The CIFAR ResNet-20 (He et al. 2016, arXiv:1512.03385, section 4.2).

    Three stages of three blocks; a 3x3 convolution with a norm is the shortcut where
    a stage changes the shape.

    Attributes:
        width: multiplies the 16, 32 and 64 channels of the stages.
        outputs: length of the embedding.
        norm: one of `NORMS`, or None: then convolutions have biases, and what a block
            adds is halved.
        groups: of a group norm.
    """

    width: int
    outputs: int
    norm: str | None = "batch"
    groups: int = 8

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Embedding:
        """Embed images; in training mode by the statistics of the batch itself."""
        norm = {"norm": self.norm, "groups": self.groups}
        x = _residual_stages(images, train, self.width, (3, 3, 3), norm)
        return nn.Dense(self.outputs)(x.mean(axis=(1, 2)))


class ResNet(nn.Module):
    """A CIFAR ResNet of any depth: 6 n + 2 layers for three stages of n blocks.

    Attributes:
        width: as for `ResNet20`.
        outputs: length of the embedding.
        blocks: of each stage.
        norm: as for `ResNet20`.
        groups: of a group norm.
    """

    width: int
    outputs: int
    blocks: Sequence[int] = (1, 1, 1)
    norm: str | None = "batch"
    groups: int = 8

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Embedding:
        """Embed images; in training mode by the statistics of the batch itself."""
        norm = {"norm": self.norm, "groups": self.groups}
        x = _residual_stages(images, train, self.width, self.blocks, norm)
        return nn.Dense(self.outputs)(x.mean(axis=(1, 2)))


class ResNetEncoder(nn.Module):
    """A CIFAR ResNet without its head: images to a feature map.

    Attributes:
        width: multiplies the 16, 32, 64 ... channels of the stages, each of which but
            the first halves the image.
        blocks: of each stage; (3, 3, 3) are those of ResNet-20.
        norm: as for `ResNet20`.
        groups: of a group norm.
    """

    width: int
    blocks: Sequence[int] = (3, 3, 3)
    norm: str | None = "batch"
    groups: int = 8

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Features:
        """Encode images; in training mode by the statistics of the batch itself."""
        norm = {"norm": self.norm, "groups": self.groups}
        return _residual_stages(images, train, self.width, self.blocks, norm)


class VGGEncoder(nn.Module):
    """Stages of 3x3 convolutions, each but the last ended by 2x2 max pooling.

    Attributes:
        channels: of each convolution, a tuple for each stage.
        norm: as for `VGG`.
        groups: of a group norm.
    """

    channels: Sequence[Sequence[int]]
    norm: str | None = "batch"
    groups: int = 8

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Features:
        """Encode images; in training mode by the statistics of the batch itself."""
        x = jnp.asarray(images)
        for stage, widths in enumerate(self.channels):
            x = nn.max_pool(x, (2, 2), (2, 2)) if stage else x
            for channels in widths:
                layer = _ConvNorm(channels, norm=self.norm, groups=self.groups)
                x = nn.relu(layer(x, train))
        return x


class BottleneckResNet(nn.Module):
    """A ResNet of bottleneck blocks for large images (arXiv:1512.03385, table 1).

    Blocks (3, 4, 6, 3) make a ResNet-50, (2, 2, 2, 2) a ResNet-26. A stage halves the
    image in the 3x3 convolution of its first block.

    Attributes:
        outputs: length of the embedding.
        blocks: of each stage.
        width: channels of the stem, and inside the blocks of the first stage.
        norm: one of `NORMS`, or None: then convolutions have biases, and what a block
            adds is halved.
        groups: of a group norm.
    """

    outputs: int
    blocks: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    norm: str | None = "batch"
    groups: int = 32

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Embedding:
        """Embed images; in training mode by the statistics of the batch itself."""
        norm = {"norm": self.norm, "groups": self.groups}
        x = nn.relu(_ConvNorm(self.width, 2, kernel=7, **norm)(images, train))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                x = _Bottleneck(self.width * 2**stage, strides, **norm)(x, train)
        return nn.Dense(self.outputs)(x.mean(axis=(1, 2)))


def _residual_stages(
    images: Images,
    train: bool,
    width: int,
    blocks: Sequence[int],
    norm: Mapping[str, Any],
) -> Array:
    """Apply a convolution and stages of blocks inside the module that calls this."""
    x = nn.relu(_ConvNorm(16 * width, **norm)(images, train))
    for stage, count in enumerate(blocks):
        for block in range(count):
            strides = 2 if stage > 0 and block == 0 else 1
            x = _Block(16 * 2**stage * width, strides, **norm)(x, train)
    return x


class _Block(nn.Module):
    channels: int
    strides: int
    norm: str | None
    groups: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = {"norm": self.norm, "groups": self.groups}
        y = nn.relu(_ConvNorm(self.channels, self.strides, **norm)(x, train))
        y = _ConvNorm(self.channels, **norm)(y, train)
        if self.strides > 1 or x.shape[-1] != self.channels:
            x = _ConvNorm(self.channels, self.strides, **norm)(x, train)
        return nn.relu(x + (y if self.norm else y / 2))


class _Bottleneck(nn.Module):
    channels: int
    strides: int
    norm: str | None
    groups: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        norm = {"norm": self.norm, "groups": self.groups}
        y = nn.relu(_ConvNorm(self.channels, kernel=1, **norm)(x, train))
        y = nn.relu(_ConvNorm(self.channels, self.strides, **norm)(y, train))
        y = _ConvNorm(4 * self.channels, kernel=1, **norm)(y, train)
        if self.strides > 1 or x.shape[-1] != 4 * self.channels:
            shortcut = _ConvNorm(4 * self.channels, self.strides, kernel=1, **norm)
            x = shortcut(x, train)
        return nn.relu(x + (y if self.norm else y / 2))


class _ConvNorm(nn.Module):
    channels: int
    strides: int = 1
    norm: str | None = "batch"
    groups: int = 8
    kernel: int = 3

    @nn.compact
    def __call__(self, x: Array | np.ndarray, train: bool) -> Array:
        # On CPUs XLA is slow to differentiate convolutions, so train by products.
        differentiated = train and not self.is_mutable_collection(UNDIFFERENTIATED)
        convolve = _convolve if differentiated and self.kernel == 3 else None
        x = nn.Conv(
            self.channels,
            (self.kernel, self.kernel),
            self.strides,
            use_bias=self.norm is None,
            conv_general_dilated=convolve,
        )(x)
        if self.norm == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        if self.norm == "group":
            return nn.GroupNorm(self.groups)(x)
        if self.norm == "layer":
            return nn.LayerNorm()(x)
        if self.norm is None:
            return jnp.asarray(x)
        raise ValueError(
            f"model: expected norm to be one of {', '.join(NORMS)} or None, got "
            f'"{self.norm}". Change the model.'
        )


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
