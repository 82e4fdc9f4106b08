"""Tasks run: train a network for each task, merge all pairs but for their heads.

As in an experiment on classes everything that is done is on disk, and a run that
was stopped goes on where it was.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc.experiments import models
from jmudsc.experiments.datasets import some, Split
from jmudsc.experiments.scaled_performance import (
    constant_loss,
    mean_loss,
    scaled_performance,
)
from jmudsc.experiments.tasks import check_tasks, Examples, examples_of, TASKS
from jmudsc.experiments.tasks_config import TaskExperiment
from jmudsc.experiments.tasks_networks import HEAD, network_of
from jmudsc.experiments.tasks_report import (
    CONSTANT,
    Losses,
    merge_name,
    pairs_of,
    parent_name,
    read_losses,
    row_name,
    rows_of,
    write_losses,
)
from jmudsc.experiments.training import Goal, NetworkSetup, train
from jmudsc.experiments.training_state import trained_once
from jmudsc.matching.methods import TABLE
from jmudsc.merging.merge import merge
from jmudsc.merging.result import MergeResult
from jmudsc.progress import prefixed, Progress

_REPAIRS: Mapping[str, dict[str, str]] = {
    "none": {},
    "refit": {"refit": "least-squares"},
    "repair": {"repair": "rescale"},
}


@dataclass(frozen=True, eq=False)
class TasksSetup:
    """Data, networks and keys of one seed.

    Attributes:
        experiment: the config.
        training: the training images.
        networks: of each task.
        test: examples of each task to score on.
        calibration: of each task, for activations and statistics.
        search: of each task, to choose alpha on.
        constants: the loss of the best constant on `test` and on `search`.
        keys: for training, a PRNG key for each task.
        merge_key: for checking specs and matching.
    """

    experiment: TaskExperiment
    training: Split
    networks: Mapping[str, nn.Module]
    test: Mapping[str, Examples]
    calibration: Mapping[str, Examples]
    search: Mapping[str, Examples]
    constants: Mapping[str, tuple[float, float]]
    keys: Mapping[str, jax.Array]
    merge_key: jax.Array


def score_pairs(
    experiment: TaskExperiment,
    training: Split,
    test: Split,
    seed: int,
    folder: Path,
    say: Progress,
) -> dict[str, Losses]:
    """Train, merge and score all networks of a seed that have no losses yet.

    Args:
        experiment: the config.
        training: the training images.
        test: the test images.
        seed: decides everything random.
        folder: of the results of this seed; what it holds already is used.
        say: called with the stage, how much of it is done, and out of how much.

    Returns:
        Name of a network -> its losses.

    Raises:
        ValueError: if a task cannot be learned from such images, or a network is no
            better than a constant at its own task.
    """
    file, tasks = folder / "losses.json", experiment.tasks
    wanted = [
        CONSTANT,
        *map(parent_name, tasks),
        *(merge_name(p, row) for p in pairs_of(tasks) for row in rows_of(experiment)),
    ]
    found = read_losses(file)
    if all(name in found for name in wanted):
        return {name: found[name] for name in wanted}
    setup = set_up_tasks(experiment, seed, training, test)
    found[CONSTANT] = Losses({task: setup.constants[task][0] for task in tasks})
    for task in tasks:
        if (name := parent_name(task)) not in found:
            start = time.perf_counter()
            variables = network_at(setup, task, folder, say)
            seconds = round(time.perf_counter() - start, 2)
            loss = test_loss(setup, task, variables)
            scaled_performance(setup.constants[task][0], loss, loss)  # or it is useless
            found[name] = Losses({task: loss}, seconds)
            write_losses(file, found)
    for name, entry in _merges(setup, folder, found, say):
        found[name] = entry
        write_losses(file, found)
    return {name: found[name] for name in wanted}


def set_up_tasks(
    experiment: TaskExperiment, seed: int, training: Split, test: Split
) -> TasksSetup:
    """Draw everything random that the networks of one seed share.

    Args:
        experiment: the config.
        seed: decides all of it.
        training: the training images.
        test: the test images.

    Returns:
        The setup.

    Raises:
        ValueError: if a task cannot be learned from such images.
    """
    check_tasks("tasks", experiment.tasks, training.images.shape[1:])
    keys = jax.random.split(jax.random.key(seed), 8)
    tasks, classes = experiment.tasks, int(training.classes.max()) + 1
    shape, code = training.images.shape[1:], experiment.code
    calibration = some(keys[0], training, experiment.calibration)
    searched = some(keys[1], training, experiment.search)

    def of_all(split: Split, key: jax.Array) -> dict[str, Examples]:
        return {task: examples_of(task, split, key) for task in tasks}

    scored, search = of_all(test, keys[2]), of_all(searched, keys[3])
    constants = {}
    for task in tasks:
        every = examples_of(task, training, keys[7])
        losses = (constant_loss(TASKS[task], every, x[task]) for x in (scored, search))
        constants[task] = tuple(losses)
    network = partial(
        network_of,
        experiment.network,
        image_shape=shape,
        classes=classes,
        code=code,
    )
    return TasksSetup(
        experiment=experiment,
        training=training,
        networks={task: network(TASKS[task]) for task in tasks},
        test=scored,
        calibration=of_all(calibration, keys[4]),
        search=search,
        constants=constants,
        keys=dict(zip(tasks, jax.random.split(keys[5], len(tasks)), strict=True)),
        merge_key=keys[6],
    )


def test_loss(setup: TasksSetup, task: str, variables: PyTree) -> float:
    """Return the mean loss of a network for a task over the test images."""
    apply = models.apply_fn(setup.networks[task])
    return mean_loss(apply, variables, TASKS[task], setup.test[task])


def network_at(setup: TasksSetup, task: str, folder: Path, say: Progress) -> PyTree:
    """Load the network of a task; train it if need be."""
    init_key, train_key = jax.random.split(setup.keys[task])
    model, config = setup.networks[task], setup.experiment.training
    images = setup.training
    return trained_once(
        folder / task,
        config.epochs,
        lambda keeping: train(
            NetworkSetup(model, config),
            models.init(model, init_key, images.images.shape[1:]),
            Goal(task, TASKS[task].objective, images, images.classes),
            key=train_key,
            keeping=keeping,
            progress=prefixed(say, f"{task} "),
        ),
    )


def _merges(
    setup: TasksSetup, folder: Path, found: Mapping[str, Losses], say: Progress
) -> Iterator[tuple[str, Losses]]:
    """Yield the merges of all pairs that have no losses yet."""
    experiment = setup.experiment
    for pair in pairs_of(experiment.tasks):
        parents = None
        for method in experiment.methods:
            names = {
                merge_name(pair, row_name(method, repair)): repair
                for repair in experiment.repairs
            }
            missing = {n: repair for n, repair in names.items() if n not in found}
            if not missing:
                continue
            say(f"{' + '.join(pair)}: {method}", 0, None)
            parents = parents or [network_at(setup, task, folder, say) for task in pair]
            start = time.perf_counter()
            merge_by = pair_merger(setup, pair, parents)
            alpha = _alpha(setup, pair, parents, method)
            choosing = time.perf_counter() - start
            for name, repair in missing.items():
                start = time.perf_counter()
                result = merge_by(method=method, alpha=alpha, **_REPAIRS[repair])
                seconds = round(choosing + time.perf_counter() - start, 2)
                both = zip(pair, result.networks, strict=True)
                losses = {task: test_loss(setup, task, own) for task, own in both}
                shown = alpha if TABLE[method].blends else None
                yield name, Losses(losses, seconds, shown)


def _alpha(
    setup: TasksSetup, pair: tuple[str, str], parents: list[PyTree], method: str
) -> float:
    """Choose alpha on training images if there is a choice."""
    alphas = setup.experiment.alphas
    if len(alphas) == 1 or not TABLE[method].blends:
        return alphas[0]
    limits = [
        (setup.constants[task][1], _searched(setup, task, parent))
        for task, parent in zip(pair, parents, strict=True)
    ]

    def score(networks: list[PyTree]) -> float:
        losses = map(partial(_searched, setup), pair, networks)
        reached = zip(limits, losses, strict=True)
        scaled = [scaled_performance(best, own, loss) for (best, own), loss in reached]
        return float(np.mean(scaled))

    merge_by = pair_merger(setup, pair, parents)
    searched = merge_by(method=method, alpha="search", alphas=alphas, score=score)
    return searched.recipe["alpha"]


def _searched(setup: TasksSetup, task: str, variables: PyTree) -> float:
    apply = models.apply_fn(setup.networks[task])
    return mean_loss(apply, variables, TASKS[task], setup.search[task])


def pair_merger(
    setup: TasksSetup, pair: tuple[str, str], parents: list[PyTree]
) -> Callable[..., MergeResult]:
    """Return the function that merges two networks but for their heads.

    Args:
        setup: of the seed.
        pair: their tasks.
        parents: their variables.

    Returns:
        `jmudsc.merge` for these networks, which takes the method and its options.
    """
    networks = [setup.networks[task] for task in pair]
    return partial(
        merge,
        [models.apply_fn(network) for network in networks],
        parents,
        inputs_of(setup, pair),
        key=setup.merge_key,
        separate=HEAD,
        update_fn=[models.update_fn(network) for network in networks],
    )


def inputs_of(setup: TasksSetup, pair: tuple[str, str]) -> list[np.ndarray]:
    """Return what both networks are given, once if it is the same for both."""
    first, second = (setup.calibration[task].inputs for task in pair)
    same = all(map(np.array_equal, first, second))
    return first if same else [*first, *second]
