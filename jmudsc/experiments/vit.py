"""ViT: the vision transformer of the experiments."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Images = Float[Array | np.ndarray, "batch height width channels"]
Embedding = Float[Array, "batch outputs"]


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1).

    Norms come before attention and the MLP; the class token is what is embedded.

    Attributes:
        outputs: length of the embedding.
        patch: side of the square patches; must divide height and width.
        width: channels of the residual stream.
        depth: number of blocks.
        heads: of each attention; must divide the width.
        hidden: units of each MLP; None for four times the width.
    """

    outputs: int
    patch: int
    width: int
    depth: int
    heads: int
    hidden: int | None = None

    @nn.compact
    def __call__(self, images: Images, train: bool = False) -> Embedding:
        """Embed images; training mode is the same as evaluation mode."""
        x = nn.Dense(self.width, name="patches")(_patches(images, self.patch))
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
        draw = nn.initializers.normal(0.02)
        x = x + self.param("positions", draw, (1, *x.shape[1:]))
        for _ in range(self.depth):
            x = _Block(self.heads, self.hidden or 4 * self.width)(x)
        return nn.Dense(self.outputs)(nn.LayerNorm()(x)[:, 0])


class _Block(nn.Module):
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x + nn.MultiHeadDotProductAttention(self.heads)(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(y)


def _patches(images: Images, size: int) -> Float[Array, "batch patches pixels"]:
    """Cut images into square patches, each flattened."""
    batch, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(
            f"ViT: expected a patch that divides both sides of images of "
            f"{height}x{width}, got {size}. Choose another patch."
        )
    x = images.reshape(batch, height // size, size, width // size, size, channels)
    return jnp.transpose(x, (0, 1, 3, 2, 4, 5)).reshape(
        batch, -1, size * size * channels
    )
