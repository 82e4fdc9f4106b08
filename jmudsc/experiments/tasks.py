"""Tasks: what different networks learn to tell from the same images.

A task turns images and their classes into inputs and targets. Inputs have the shape of
the images, so that all networks can have one trunk.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jmudsc.experiments.datasets import batches, Split
from jmudsc.experiments.training import Objective
from jmudsc.paths import did_you_mean, listed

# Standard deviation of what denoising takes away; that of pixels is about 1.
NOISE = 0.5
_BATCH = 256

Images = Float[Array | np.ndarray, "batch height width channels"]
Pictures = Float[Array, "batch height width colors"]  # targets, not inputs
Classes = Int[Array, " batch"]


@dataclass(frozen=True)
class Task:
    """What is made of images for a network to learn.

    Attributes:
        objective: its inputs, its targets, and the loss of an output: cross-entropy
            where targets are answers, and else the mean square over the pixels.
        answers: how many answers a target is one of, None for as many as there are
            classes; 0 where targets are pictures of the images' size.
    """

    objective: Objective
    answers: int | None


@dataclass(frozen=True, eq=False)
class Examples:
    """What a network is given and what it is to say, for all images of a split.

    Attributes:
        inputs: in batches.
        targets: of each batch.
    """

    inputs: list[np.ndarray]
    targets: list[np.ndarray]


def classification(key: PRNGKeyArray, images: Images, classes: Classes) -> tuple:
    """Image -> its class."""
    return images, classes


def autoencoding(key: PRNGKeyArray, images: Images, classes: Classes) -> tuple:
    """Image -> the image."""
    return images, images


def denoising(key: PRNGKeyArray, images: Images, classes: Classes) -> tuple:
    """Image with normal noise of standard deviation `NOISE` -> the image without."""
    return images + NOISE * jax.random.normal(key, images.shape), images


def edges(key: PRNGKeyArray, images: Images, classes: Classes) -> tuple:
    """Image -> the steepness of its brightness at every pixel, by Sobel's filters."""
    return images, steepness(images)


def rotation(key: PRNGKeyArray, images: Images, classes: Classes) -> tuple:
    """Image turned by a random number of quarters -> that number."""
    turns = jax.random.randint(key, (len(images),), 0, 4)
    turned = jnp.stack([jnp.rot90(images, n, axes=(1, 2)) for n in range(4)])
    return turned[turns, jnp.arange(len(images))], turns


def colorization(key: PRNGKeyArray, images: Images, classes: Classes) -> tuple:
    """Gray image, in as many channels -> the image in color."""
    gray = images.mean(axis=-1, keepdims=True)
    return jnp.broadcast_to(gray, images.shape), images


def steepness(images: Images) -> Pictures:
    """Return the length of the gradient of an image's brightness.

    Sobel's filters over 8, so that it is the change per pixel; beyond the border an
    image goes on as it ends. Brightness is the mean of the channels.

    Args:
        images: a batch.

    Returns:
        One channel per image, of its size; 0 where an image does not change.
    """
    height, width = images.shape[1:3]
    edge = jnp.pad(images.mean(axis=-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
    # Differences before sums: where nothing changes they are 0 exactly.
    across = edge[:, :, 2:] - edge[:, :, :-2]
    down = edge[:, 2:] - edge[:, :-2]
    across = across[:, :height] + 2 * across[:, 1:-1] + across[:, 2:]
    down = down[:, :, :width] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return jnp.sqrt(across**2 + down**2)[..., None] / 8


def _entropy(logits: Array, targets: Classes, _: None) -> Float[Array, " batch"]:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def _square(pictures: Pictures, targets: Pictures, _: None) -> Float[Array, " batch"]:
    return ((pictures - targets) ** 2).mean(axis=(1, 2, 3))


TASKS: Mapping[str, Task] = {
    "classification": Task(Objective(classification, _entropy), None),
    "autoencoding": Task(Objective(autoencoding, _square), 0),
    "denoising": Task(Objective(denoising, _square), 0),
    "edges": Task(Objective(edges, _square), 0),
    "rotation": Task(Objective(rotation, _entropy), 4),
    "colorization": Task(Objective(colorization, _square), 0),
}


def check_tasks(where: str, names: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Check that tasks are known and that images of a shape can be used for them.

    Args:
        where: the caller, named in the error.
        names: of `TASKS`.
        shape: height, width and channels of an image.

    Raises:
        ValueError: listing the tasks that are unknown or need other images.
    """
    height, width, channels = shape
    problems = [
        f"{name}: there is no such task{did_you_mean(name, TASKS) or '.'}"
        for name in names
        if name not in TASKS
    ]
    if "colorization" in names and channels == 1:
        problems.append("colorization: needs images in color.")
    if "rotation" in names and height != width:
        problems.append("rotation: needs square images.")
    if problems:
        raise ValueError(
            f"{where}: expected tasks for images of {height}x{width}x{channels}, got "
            f"some that do not suit them:\n{listed(problems)}\n"
            f"Choose from {', '.join(TASKS)}."
        )


def examples_of(name: str, split: Split, key: PRNGKeyArray) -> Examples:
    """Make the inputs and targets of a task once and for all.

    Args:
        name: of `TASKS`.
        split: images and their classes.
        key: decides noise and turns, for every task in its own way.

    Returns:
        The examples, in the order of the images.

    Raises:
        ValueError: if there are no images.
    """
    key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    make, inputs, targets = _JITTED[name], [], []
    for number, images in enumerate(batches(split, _BATCH)):
        start = number * _BATCH
        classes = split.classes[start : start + _BATCH]
        made = make(jax.random.fold_in(key, number), images, classes)
        inputs.append(np.asarray(made[0]))
        targets.append(np.asarray(made[1]))
    return Examples(inputs, targets)


_JITTED = {name: jax.jit(task.objective.examples) for name, task in TASKS.items()}
