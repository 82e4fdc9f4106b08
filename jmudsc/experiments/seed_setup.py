"""Seed setup: what all networks of one seed of an experiment have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jmudsc.experiments.class_split_config import Experiment
from jmudsc.experiments.datasets import batches, only, some, Split
from jmudsc.experiments.training import class_vectors

_BATCH = 256


@dataclass(frozen=True, eq=False)
class SeedSetup:
    """Tasks, data and keys of one seed.

    Attributes:
        experiment: the config.
        tasks: the classes of each parent.
        vectors: the unit vector of every class.
        training: the training images of all tasks.
        test: the test images of all tasks.
        calibration: batches for activations and statistics, tasks mixed.
        by_task: the same images in batches of one task each.
        owners: for each of `by_task` the number of its task.
        search: training images to choose alpha on.
        network_keys: a PRNG key for each parent and one for the network that learns all
            classes.
        check_key: for checking the spec.
        match_key: for matching.
    """

    experiment: Experiment
    tasks: tuple[tuple[int, ...], ...]
    vectors: jax.Array
    training: Split
    test: Split
    calibration: list[np.ndarray]
    by_task: list[np.ndarray]
    owners: list[int]
    search: Split
    network_keys: jax.Array
    check_key: jax.Array
    match_key: jax.Array


def set_up_seed(
    experiment: Experiment, seed: int, training: Split, test: Split
) -> SeedSetup:
    """Draw everything random that networks share.

    Args:
        experiment: the config.
        seed: decides all of it.
        training: all training images of the dataset.
        test: all test images.

    Returns:
        The setup.

    Raises:
        ValueError: if there are no images of a class, or fewer classes than tasks.
    """
    keys = jax.random.split(jax.random.key(seed), 7)
    classes = np.unique(training.classes).tolist()
    tasks = experiment.tasks
    if isinstance(tasks, int):
        tasks = draw_tasks(keys[0], classes, tasks)
    chosen = [c for task in tasks for c in task]
    training, test = only(training, chosen), only(test, chosen)
    calibration = some(keys[1], training, experiment.calibration)
    own = [batches(only(calibration, task), _BATCH) for task in tasks]
    # `nn.Module` declares no `outputs`, all of NETWORKS have one.
    outputs: int = getattr(experiment.network, "outputs")  # noqa: B009
    return SeedSetup(
        experiment=experiment,
        tasks=tasks,
        vectors=class_vectors(keys[2], max(classes) + 1, outputs),
        training=training,
        test=test,
        calibration=batches(calibration, _BATCH),
        by_task=[batch for task in own for batch in task],
        owners=[number for number, task in enumerate(own) for _ in task],
        search=some(keys[3], training, experiment.search),
        network_keys=jax.random.split(keys[4], len(tasks) + 1),
        check_key=keys[5],
        match_key=keys[6],
    )


def draw_tasks(
    key: jax.Array, classes: Sequence[int], count: int
) -> tuple[tuple[int, ...], ...]:
    """Cut classes into random parts, whose sizes differ by at most one.

    Args:
        key: a PRNG key.
        classes: to be cut.
        count: of the parts.

    Returns:
        The classes of each part, in ascending order.

    Raises:
        ValueError: if there are fewer classes than parts.
    """
    if len(classes) < count:
        raise ValueError(
            f"tasks: expected one or more classes for each of {count} tasks, got "
            f"{len(classes)} classes. Ask for fewer tasks."
        )
    order = jax.random.permutation(key, np.asarray(classes))
    parts = np.array_split(np.asarray(order), count)
    return tuple(tuple(sorted(part.tolist())) for part in parts)
