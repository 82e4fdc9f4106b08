"""Fine-tune setup: the images, exams and keys of one seed of the experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jmudsc.experiments.accuracy import cosines_of
from jmudsc.experiments.datasets import Split
from jmudsc.experiments.finetune_config import FineTuneExperiment
from jmudsc.experiments.finetune_images import Pictures
from jmudsc.experiments.finetune_tasks import IMAGE_TASKS, ImageTask
from jmudsc.experiments.training import class_vectors
from jmudsc.types import ApplyFn

_BATCH = 500
_OTHER = {"digits": "photos", "photos": "digits"}


@dataclass(frozen=True, eq=False)
class Exam:
    """Images of all tasks, each to be told apart among its own task's classes.

    Attributes:
        images: of one task after the other.
        classes: of each image.
        tasks: the number of each image's task.
        own: which classes each task has.
    """

    images: Float[np.ndarray, "examples height width channels"]
    classes: Int[np.ndarray, " examples"]
    tasks: Int[np.ndarray, " examples"]
    own: Bool[np.ndarray, "tasks classes"]


@dataclass(frozen=True, eq=False)
class TuneSetup:
    """What all networks of one seed have in common.

    Attributes:
        experiment: the config.
        vectors: the unit vector of every class of both kinds.
        base: what the base is trained on.
        tasks: what each fine-tune is trained on.
        inputs: unlabelled training images of each task, as many as are ever needed.
        search: training images that scales are chosen on. No fine-tune has seen them,
            nor those of `inputs`.
        test: test images.
        keys: for drawing the network, for the base, each fine-tune, and merging.
    """

    experiment: FineTuneExperiment
    vectors: Float[Array, "classes outputs"]
    base: Split
    tasks: Sequence[Split]
    inputs: Sequence[np.ndarray]
    search: Exam
    test: Exam
    keys: Mapping[str, jax.Array]


def set_up_finetunes(
    experiment: FineTuneExperiment, seed: int, pictures: Pictures
) -> TuneSetup:
    """Draw everything random that networks share, and change the images.

    Args:
        experiment: the config.
        seed: decides all of it.
        pictures: the images of both kinds.

    Returns:
        The setup.

    Raises:
        ValueError: if there are too few training images.
    """
    names = ("vectors", "images", "start", "base", "merge", *experiment.finetunes)
    keys = dict(
        zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True)
    )
    draw = np.random.default_rng(np.asarray(jax.random.key_data(keys["images"])))
    tasks = [IMAGE_TASKS[name] for name in experiment.finetunes]
    base, left = _base_images(experiment, pictures, tasks, draw)
    seen = max(experiment.samples)  # unlabelled, before those that scales are chosen on
    held = seen + experiment.search
    drawn = [
        _task_images(experiment, pictures, task, left[task.kind], draw)
        for task in tasks
    ]
    searched = [_part(split, seen, held) for split in drawn]
    tests = [_tests(experiment, pictures, task) for task in tasks]
    # `nn.Module` declares no `outputs`, all of NETWORKS have one.
    outputs: int = getattr(experiment.network, "outputs")  # noqa: B009
    own = _own_classes(pictures, tasks)
    return TuneSetup(
        experiment=experiment,
        vectors=class_vectors(keys["vectors"], pictures.classes, outputs),
        base=base,
        tasks=[_part(split, held, len(split)) for split in drawn],
        inputs=[split.images[:seen] for split in drawn],
        search=_exam(searched, own),
        test=_exam(tests, own),
        keys=keys,
    )


def accuracy_by_task(
    apply_fn: ApplyFn, variables: PyTree, exam: Exam, vectors: Float[Array, "..."]
) -> tuple[float, ...]:
    """Score a network by the nearest class vector among those of the image's task.

    Args:
        apply_fn: `(variables, images) -> embedding`, in evaluation mode.
        variables: of the network.
        exam: the images.
        vectors: a unit vector for every class.

    Returns:
        The accuracy of each task, in [0, 1]; an embedding that is not finite is wrong.
    """
    is_right = []
    for start in range(0, len(exam.images), _BATCH):
        part = slice(start, start + _BATCH)
        images = exam.images[part]
        padded = np.zeros((_BATCH, *images.shape[1:]), images.dtype)
        padded[: len(images)] = images
        found = cosines_of(apply_fn, variables, padded, vectors)
        found = np.asarray(found)[: len(images)]
        chosen = np.where(exam.own[exam.tasks[part]], found, -np.inf).argmax(axis=1)
        is_finite = np.isfinite(found).all(axis=1)
        is_right.append(is_finite & (chosen == exam.classes[part]))
    right = np.concatenate(is_right)
    return tuple(float(right[exam.tasks == n].mean()) for n in range(len(exam.own)))


def _base_images(
    experiment: FineTuneExperiment,
    pictures: Pictures,
    tasks: Sequence[ImageTask],
    draw: np.random.Generator,
) -> tuple[Split, dict[str, np.ndarray]]:
    """Draw what the base is trained on, and which images of each kind are left."""
    parts, left = [], {}
    for kind in ("digits", "photos"):
        split = pictures.of(kind)
        order = draw.permutation(len(split))
        left[kind] = order[experiment.base_images :]
        chosen = order[: experiment.base_images]
        images, classes = split.images[chosen].copy(), split.classes[chosen]
        others = pictures.of(_OTHER[kind]).images
        which = draw.integers(len(tasks), size=len(images))
        which[draw.random(len(images)) >= experiment.glimpse] = -1
        for number, task in enumerate(tasks):
            of_task = np.isin(classes, _classes(pictures, task))
            if task.kind == kind and (some := (which == number) & of_task).any():
                under = others[draw.integers(len(others), size=int(some.sum()))]
                images[some] = task.change(images[some], under)
        parts.append(Split(images, classes))
    images = np.concatenate([part.images for part in parts])
    return Split(images, np.concatenate([part.classes for part in parts])), left


def _task_images(
    experiment: FineTuneExperiment,
    pictures: Pictures,
    task: ImageTask,
    left: np.ndarray,
    draw: np.random.Generator,
) -> Split:
    """Draw the training images of a task from those that the base has not seen."""
    split, others = pictures.of(task.kind), pictures.of(_OTHER[task.kind]).images
    allowed = left[np.isin(split.classes[left], _classes(pictures, task))]
    count = max(experiment.samples) + experiment.search + experiment.task_images
    if len(allowed) < count:
        raise ValueError(
            f"{task.name}: expected {count} training images that the base has not "
            f"seen, got {len(allowed)}. Lower base_images, task_images or search."
        )
    chosen = draw.permutation(allowed)[:count]
    under = others[draw.integers(len(others), size=count)]
    return _changed(task, Split(split.images[chosen], split.classes[chosen]), under)


def _tests(
    experiment: FineTuneExperiment, pictures: Pictures, task: ImageTask
) -> Split:
    split = pictures.of(task.kind, test=True)
    others = pictures.of(_OTHER[task.kind], test=True).images
    allowed = np.flatnonzero(np.isin(split.classes, _classes(pictures, task)))
    chosen = allowed[: experiment.test_images]
    under = others[np.arange(len(chosen)) % len(others)]
    return _changed(task, Split(split.images[chosen], split.classes[chosen]), under)


def _changed(task: ImageTask, split: Split, others: np.ndarray) -> Split:
    images = np.ascontiguousarray(task.change(split.images, others), np.float32)
    return Split(images, split.classes)


def _classes(pictures: Pictures, task: ImageTask) -> np.ndarray:
    """Return the classes of a task among those of both kinds."""
    present = np.unique(pictures.of(task.kind).classes)
    return present if task.chosen is None else present[list(task.chosen)]


def _own_classes(pictures: Pictures, tasks: Sequence[ImageTask]) -> np.ndarray:
    every = np.arange(pictures.classes)
    return np.stack([np.isin(every, _classes(pictures, task)) for task in tasks])


def _part(split: Split, start: int, stop: int) -> Split:
    return Split(split.images[start:stop], split.classes[start:stop])


def _exam(splits: Sequence[Split], own: np.ndarray) -> Exam:
    return Exam(
        np.concatenate([split.images for split in splits]),
        np.concatenate([split.classes for split in splits]),
        np.repeat(np.arange(len(splits)), [len(split) for split in splits]),
        own,
    )
