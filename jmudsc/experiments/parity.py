"""Parity against primality: two tasks on the same images of digits.

The setting of the loss landscape of Xu et al. (2024, arXiv:2403.01753): one network
learns whether a digit is odd, another whether it is prime, both from all images and
neither with biases. Every class of the two tasks has a vector, as in `training`, so
that one merged network has one embedding, in which both tasks are read.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from jmudsc.experiments import models, training
from jmudsc.experiments.datasets import batches, load_splits, some, Split
from jmudsc.experiments.training import TrainConfig
from jmudsc.landscape.losses import Loss
from jmudsc.paths import did_you_mean
from jmudsc.progress import Progress
from jmudsc.types import ApplyFn

# Per task the digits of its second class; all others are of its first.
TASKS = {"parity": (1, 3, 5, 7, 9), "primality": (2, 3, 5, 7)}
TRAINING = TrainConfig(epochs=5, batch_size=500, learning_rate=0.1)
_BATCH = 500


class BiasFreeMLP(nn.Module):
    """Dense layers without biases, ReLU after each of them, the last one included.

    Attributes:
        widths: units of each hidden layer.
        outputs: length of the embedding.
    """

    widths: Sequence[int]
    outputs: int

    @nn.compact
    def __call__(self, images: models.Images, train: bool = False) -> Array:
        """Embed images; training mode is the same as evaluation mode."""
        x = jnp.reshape(images, (len(images), -1))
        for width in (*self.widths, self.outputs):
            x = nn.relu(nn.Dense(width, use_bias=False)(x))
        return x


OUTPUTS = 512
NETWORK: nn.Module = BiasFreeMLP((1024, 1024, 1024), OUTPUTS)


def apply_fn() -> ApplyFn:
    """Return the function of all networks, for recipes."""
    return models.apply_fn(NETWORK)


def calibration(
    seed: int, images: int, dataset: str = "mnist", data_dir: str | None = None
) -> list[np.ndarray]:
    """Return training images drawn at random, in batches, for recipes."""
    split, _ = splits(dataset, data_dir)
    return batches(some(_keys(seed)[1], split, images), _BATCH)


def loss(
    task: str,
    seed: int,
    images: int | None = None,
    dataset: str = "mnist",
    data_dir: str | None = None,
) -> Loss:
    """Return the loss of a task on test images, for recipes.

    Args:
        task: one of `TASKS`.
        seed: of the class vectors, as the parents were trained with.
        images: how many images, drawn at random; None for all.
        dataset: `mnist`, or another one of digits.
        data_dir: where TFDS keeps its datasets; None for its own place.

    Returns:
        `(variables) -> loss`, the mean cross-entropy as in training, which JAX can
        trace.

    Raises:
        ValueError: if there is no such task.
    """
    _, test = splits(dataset, data_dir)
    split = some(_keys(seed)[2], test, images)
    vectors = class_vectors(seed)
    own = reclassified(split, task)
    return lambda variables: scores(variables, own, vectors, task)[0]


def scores(
    variables: PyTree, split: Split, vectors: Float[Array, "4 dimension"], task: str
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Measure a network on one task.

    Args:
        variables: of the network.
        split: images, with the classes of the task.
        vectors: of all classes.
        task: one of `TASKS`.

    Returns:
        The mean cross-entropy, as in training, and the accuracy in [0, 1].
    """
    first = classes_of(task)[0]
    return _scores(variables, split.images, split.classes - first, vectors[first:][:2])


def splits(dataset: str, data_dir: str | None) -> tuple[Split, Split]:
    """Load the training and test images once; the classes are the digits."""
    return _splits(dataset, data_dir)


def class_vectors(seed: int) -> Float[Array, "4 dimension"]:
    """Draw the vectors of the classes of both tasks."""
    return training.class_vectors(_keys(seed)[0], 2 * len(TASKS), OUTPUTS)


def classes_of(task: str) -> tuple[int, int]:
    """Return the numbers of the two classes of a task, among those of all tasks.

    Raises:
        ValueError: if there is no such task.
    """
    if task not in TASKS:
        raise ValueError(
            f"parity: expected one of the tasks {', '.join(TASKS)}, got "
            f'"{task}"{did_you_mean(task, TASKS) or "."}'
        )
    first = 2 * list(TASKS).index(task)
    return first, first + 1


def reclassified(split: Split, task: str) -> Split:
    """Give images of digits the classes of a task.

    Raises:
        ValueError: if there is no such task.
    """
    first, _ = classes_of(task)
    second = np.isin(split.classes, TASKS[task])
    return Split(split.images, (first + second).astype(np.int32))


def train_parent(
    task: str, seed: int, split: Split, progress: Progress | None = None
) -> PyTree:
    """Train the network of one task, from its own initialization and order of images.

    Args:
        task: one of `TASKS`.
        seed: decides everything random.
        split: training images, whose classes are the digits.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        Its variables.
    """
    classes = classes_of(task)
    own, vectors = reclassified(split, task), class_vectors(seed)
    init_key, train_key = jax.random.split(_keys(seed)[3 + list(TASKS).index(task)])
    return training.train(
        training.NetworkSetup(NETWORK, TRAINING),
        models.init(NETWORK, init_key, split.images.shape[1:]),
        training.telling_apart(classes, own, vectors, TRAINING.logit_scale),
        key=train_key,
        progress=progress,
    )


@functools.cache
def _splits(dataset: str, data_dir: str | None) -> tuple[Split, Split]:
    return load_splits(dataset, data_dir=data_dir)


def _keys(seed: int) -> jax.Array:
    """Return the keys of vectors, calibration images, test images and each parent."""
    return jax.random.split(jax.random.key(seed), 3 + len(TASKS))


@jax.jit
def _scores(
    variables: PyTree,
    images: models.Images,
    targets: Int[Array | np.ndarray, " batch"],
    vectors: Float[Array, "2 dimension"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    embedding = NETWORK.apply(variables, images)
    assert isinstance(embedding, jax.Array)
    logits = TRAINING.logit_scale * training.cosines(embedding, vectors)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return losses.mean(), (logits.argmax(axis=1) == targets).mean()
