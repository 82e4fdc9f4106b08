"""Score networks that embed images near class vectors, per task and on all tasks."""

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


def evaluate(
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
        ValueError: if the tasks do not partition the labels of the split, a class has
            no vector, or an embedding is not finite.
    """
    _check("evaluate", split, vectors, tasks)
    return _scores(_all_cosines(apply_fn, variables, split, vectors), split, tasks)


def ensemble(
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
        ValueError: if there is not one model per task, and as `evaluate` does.
    """
    _check("ensemble", split, vectors, tasks)
    if len(models) != len(tasks):
        raise ValueError(
            f"ensemble: {len(models)} models for {len(tasks)} tasks, there must be one "
            "for each; pass the parents in the order of their tasks."
        )
    probabilities = np.zeros((len(split), len(vectors)))
    for variables, task in zip(models, tasks, strict=True):
        own = _all_cosines(apply_fn, variables, split, vectors)[:, list(task)]
        powers = np.exp(logit_scale * (own - own.max(axis=1, keepdims=True)))
        probabilities[:, list(task)] = powers / powers.sum(axis=1, keepdims=True)
    return _scores(probabilities, split, tasks)


def _scores(
    scores: Float[np.ndarray, "examples classes"], split: Split, tasks: Tasks
) -> Scores:
    everything = [c for task in tasks for c in task]
    joint = _best(scores, everything) == split.labels
    own = [
        (_best(scores, task) == split.labels)[np.isin(split.labels, list(task))]
        for task in tasks
    ]
    return Scores(float(joint.mean()), tuple(float(right.mean()) for right in own))


def _best(scores: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    return np.array(classes)[scores[:, list(classes)].argmax(axis=1)]


def _all_cosines(
    apply_fn: ApplyFn, variables: PyTree, split: Split, vectors: Vectors
) -> Float[np.ndarray, "examples classes"]:
    """Embed and compare in batches of one size, so that one program serves all."""
    found = []
    for images in batches(split, _BATCH):
        padded = np.zeros((_BATCH, *images.shape[1:]), images.dtype)
        padded[: len(images)] = images
        cosine = _cosines(apply_fn, variables, padded, vectors)
        found.append(np.asarray(cosine, np.float64)[: len(images)])
    result = np.concatenate(found)
    if bad := int((~np.isfinite(result)).any(axis=1).sum()):
        raise ValueError(
            f"evaluate: {bad} of {len(split)} embeddings are not finite, all must be; "
            "check the variables and the range of the images."
        )
    return result


@functools.partial(jax.jit, static_argnums=0)
def _cosines(
    apply_fn: ApplyFn, variables: PyTree, images: Array, vectors: Vectors
) -> Float[Array, "batch classes"]:
    return cosines(apply_fn(variables, images), vectors)


def _check(where: str, split: Split, vectors: Vectors, tasks: Tasks) -> None:
    classes = sorted(c for task in tasks for c in task)
    present = np.unique(split.labels).tolist()
    if classes != present:
        raise ValueError(
            f"{where}: the tasks have the classes {classes}, the split has images of "
            f"{present}, they must be the same, each class in one task; pass the tasks "
            "of this split, or cut it with datasets.only."
        )
    if len(vectors) <= classes[-1]:
        raise ValueError(
            f"{where}: class {classes[-1]} has no vector, there are {len(vectors)}; "
            "pass the class vectors of training."
        )
