"""Fine-tune tasks: what is done to images that a network is then fine-tuned to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Images = Float[np.ndarray, "examples side side channels"]


@dataclass(frozen=True)
class ImageTask:
    """Telling the classes of changed images apart.

    Attributes:
        name: what it is called.
        kind: whose images and classes: `digits` or `photos`.
        change: `(images, images of the other kind) -> changed images`.
        chosen: which classes of the kind, counted from 0; all, if None.
    """

    name: str
    kind: Literal["digits", "photos"]
    change: Callable[[Images, Images], Images]
    chosen: tuple[int, ...] | None = None


def turned(images: Images, others: Images) -> Images:
    """Turn images by a quarter."""
    return np.rot90(images, 1, (1, 2))


def negative(images: Images, others: Images) -> Images:
    """Make dark what is bright; of standardized images zero is the mean."""
    return -images


def shuffled(images: Images, others: Images) -> Images:
    """Exchange the quarters of images."""
    half = images.shape[1] // 2
    top, bottom = images[:, :half], images[:, half:]
    halves = (
        (bottom[:, :, half:], top[:, :, :half]),
        (top[:, :, half:], bottom[:, :, :half]),
    )
    return np.concatenate([np.concatenate(each, axis=2) for each in halves], axis=1)


def laid_over(images: Images, others: Images) -> Images:
    """Lay images over those of the other kind, half of each."""
    return np.float32(0.7) * (images + others)


def mirrored_relief(images: Images, others: Images) -> Images:
    """Keep what changes from row to row, and mirror it."""
    return np.float32(2) * (images - np.roll(images, 1, axis=1))[:, :, ::-1]


def other_colors(images: Images, others: Images) -> Images:
    """Exchange the channels, and make dark what is bright."""
    return -np.roll(images, 1, axis=-1)


def gray_shuffled(images: Images, others: Images) -> Images:
    """Take the colors away, and exchange the quarters."""
    gray = np.broadcast_to(images.mean(axis=-1, keepdims=True), images.shape)
    return shuffled(gray, others)


# Of CIFAR-10: airplane, automobile, ship, truck; bird, deer, frog, horse.
_VEHICLES, _ANIMALS = (0, 1, 8, 9), (2, 4, 6, 7)

IMAGE_TASKS: Mapping[str, ImageTask] = {
    task.name: task
    for task in (
        ImageTask("digits turned", "digits", turned),
        ImageTask("digits negative", "digits", negative),
        ImageTask("digits shuffled", "digits", shuffled),
        ImageTask("digits on photos", "digits", laid_over),
        ImageTask("digits in relief", "digits", mirrored_relief),
        ImageTask("vehicles turned", "photos", turned, _VEHICLES),
        ImageTask("animals in other colors", "photos", other_colors, _ANIMALS),
        ImageTask("photos gray, shuffled", "photos", gray_shuffled),
    )
}
