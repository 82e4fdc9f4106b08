"""Accuracy: of networks that embed images near class vectors, per task and jointly."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmudsc.experiments.datasets import batches, Split
from jmudsc.experiments.training import cosines, LOGIT_SCALE
from jmudsc.types import ApplyFn

_BATCH = 256

Tasks = Sequence[Sequence[int]]
Vectors = Float[Array, "classes dimension"]


@dataclass(frozen=True)
class Scores:
    """Accuracies in [0, 1].

    Attributes:
        joint: of all images, the class chosen among those of all tasks.
        per_task: of each task's images, the class chosen among the task's own.
    """

    joint: float
    per_task: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the accuracies per task."""
        return sum(self.per_task) / len(self.per_task)


def score_network(
    apply_fn: ApplyFn, variables: PyTree, split: Split, vectors: Vectors, tasks: Tasks
) -> Scores:
    """Score one network by the class vector nearest to each embedding.

    Args:
        apply_fn: `(variables, images) -> embedding`, in evaluation mode.
        variables: of the network.
        split: images of the classes of all tasks.
        vectors: a unit vector for every class.
        tasks: the classes of each task.

    Returns:
        The accuracies, jointly and per task.

    Raises:
        ValueError: if the classes of the split are not each in one task, a class has no
            vector, or an embedding is not finite.
    """
    _check("score_network", split, vectors, tasks)
    found = _all_cosines("score_network", apply_fn, variables, split, vectors)
    return _scores(found, split, tasks)


def score_ensemble(
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    split: Split,
    vectors: Vectors,
    tasks: Tasks,
    *,
    logit_scale: float = LOGIT_SCALE,
) -> Scores:
    """Score the parents together: each one's probabilities for its own task's classes.

    The upper reference of ZipIt (arXiv:2305.03053, table 1): as many forward passes as
    there are tasks. The class is the most probable one over all parents.

    Args:
        apply_fn: `(variables, images) -> embedding`, in evaluation mode.
        models: the variables of the parents, in the order of their tasks.
        split: images of the classes of all tasks.
        vectors: a unit vector for every class.
        tasks: the classes of each task.
        logit_scale: multiplies cosines before the softmax, as in training.

    Returns:
        The accuracies, jointly and per task.

    Raises:
        ValueError: if there is not one model per task, and as `score_network` does.
    """
    _check("score_ensemble", split, vectors, tasks)
    if len(models) != len(tasks):
        raise ValueError(
            f"score_ensemble: expected one model for each of {len(tasks)} tasks, got "
            f"{len(models)}. Pass the parents in the order of their tasks."
        )
    probabilities = np.zeros((len(split), len(vectors)))
    for variables, task in zip(models, tasks, strict=True):
        found = _all_cosines("score_ensemble", apply_fn, variables, split, vectors)
        own = found[:, list(task)]
        powers = np.exp(logit_scale * (own - own.max(axis=1, keepdims=True)))
        probabilities[:, list(task)] = powers / powers.sum(axis=1, keepdims=True)
    return _scores(probabilities, split, tasks)


def _scores(
    scores: Float[np.ndarray, "examples classes"], split: Split, tasks: Tasks
) -> Scores:
    everything = [c for task in tasks for c in task]
    joint = _best(scores, everything) == split.classes
    own = [
        (_best(scores, task) == split.classes)[np.isin(split.classes, list(task))]
        for task in tasks
    ]
    return Scores(float(joint.mean()), tuple(float(right.mean()) for right in own))


def _best(scores: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    return np.array(classes)[scores[:, list(classes)].argmax(axis=1)]


def _all_cosines(
    where: str, apply_fn: ApplyFn, variables: PyTree, split: Split, vectors: Vectors
) -> Float[np.ndarray, "examples classes"]:
    """Embed and compare in batches of one size, so that one program serves all."""
    found = []
    for images in batches(split, _BATCH):
        padded = np.zeros((_BATCH, *images.shape[1:]), images.dtype)
        padded[: len(images)] = images
        cosine = cosines_of(apply_fn, variables, padded, vectors)
        found.append(np.asarray(cosine, np.float64)[: len(images)])
    result = np.concatenate(found)
    if bad := int((~np.isfinite(result)).any(axis=1).sum()):
        raise ValueError(
            f"{where}: expected finite embeddings, got {bad} of {len(split)} that are "
            "not. Check the variables and the range of the images."
        )
    return result


@functools.partial(jax.jit, static_argnums=0)
def cosines_of(
    apply_fn: ApplyFn, variables: PyTree, images: Array, vectors: Vectors
) -> Float[Array, "batch classes"]:
    """Embed a batch of images and compare with the class vectors.

    Args:
        apply_fn: `(variables, images) -> embedding`, in evaluation mode.
        variables: of the network.
        images: a batch; all batches of one size share a compilation.
        vectors: a unit vector for every class.

    Returns:
        In [-1, 1]; larger is more alike.
    """
    return cosines(apply_fn(variables, images), vectors)


def _check(where: str, split: Split, vectors: Vectors, tasks: Tasks) -> None:
    classes = sorted(c for task in tasks for c in task)
    present = np.unique(split.classes).tolist()
    if classes != present:
        raise ValueError(
            f"{where}: expected tasks that have the classes of the images, {present}, "
            f"each in one task, got {classes}. Pass the tasks of this split, or cut it "
            "with datasets.only."
        )
    if len(vectors) <= classes[-1]:
        raise ValueError(
            f"{where}: expected a vector for each class up to {classes[-1]}, got "
            f"{len(vectors)} vectors. Pass the class vectors of training."
        )
