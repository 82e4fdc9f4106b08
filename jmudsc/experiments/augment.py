"""Augment: random changes of training images that leave the class as it is."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Images = Float[Array, "batch height width channels"]


def flip(key: PRNGKeyArray, images: Images) -> Images:
    """Mirror each image left to right, or not."""
    mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def crop(key: PRNGKeyArray, images: Images, padding: int = 4) -> Images:
    """Move each image by up to `padding` pixels, and fill with zeros.

    The same as padding every side and cutting an image of the old size at random. Of
    standardized images zero is the mean.

    Args:
        key: decides how far.
        images: a batch.
        padding: the farthest in either direction, in pixels.

    Returns:
        Images of the same size.
    """
    wide = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(images, wide)
    starts = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)
    cut = lambda image, start: jax.lax.dynamic_slice(
        image, (start[0], start[1], 0), images.shape[1:]
    )
    return jax.vmap(cut)(padded, starts)


def crop_and_flip(key: PRNGKeyArray, images: Images) -> Images:
    """Move each image by up to 4 pixels and mirror about half of them, as for CIFAR."""
    crop_key, flip_key = jax.random.split(key)
    return flip(flip_key, crop(crop_key, images))


# By the names that configs use.
AUGMENTS: Mapping[str, Callable[[PRNGKeyArray, Images], Images]] = {
    "none": lambda key, images: images,
    "crop": crop,
    "flip": flip,
    "crop-flip": crop_and_flip,
}
