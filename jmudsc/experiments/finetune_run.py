"""Fine-tune run: train a base, fine-tune it to every task, merge in every way.

As in the other experiments everything that is done is on disk, and a run that was
stopped goes on where it was.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc.experiments import models
from jmudsc.experiments.datasets import Split
from jmudsc.experiments.finetune_accuracies import (
    BASE,
    read_tuned,
    TOGETHER,
    TUNED,
    Tuned,
    write_tuned,
)
from jmudsc.experiments.finetune_cases import cases_of, merged_by
from jmudsc.experiments.finetune_config import FineTuneExperiment
from jmudsc.experiments.finetune_images import CHANNELS, Pictures
from jmudsc.experiments.finetune_setup import (
    accuracy_by_task,
    set_up_finetunes,
    TuneSetup,
)
from jmudsc.experiments.training import NetworkSetup, telling_apart, train, TrainConfig
from jmudsc.experiments.training_state import trained_once
from jmudsc.progress import prefixed, Progress


def score_finetunes(
    experiment: FineTuneExperiment,
    pictures: Pictures,
    seed: int,
    folder: Path,
    say: Progress,
) -> dict[str, Tuned]:
    """Train, merge and score all networks of a seed that have no score yet.

    Args:
        experiment: the config.
        pictures: the images of both kinds.
        seed: decides everything random.
        folder: of the results of this seed; what it holds already is used.
        say: called with the stage, how much of it is done, and out of how much.

    Returns:
        Name of a network -> its accuracies.

    Raises:
        ValueError: if there are too few images.
    """
    file = folder / "accuracies.json"
    found = read_tuned(file)
    cases = cases_of(experiment, _has_statistics(experiment))
    keys = [BASE, TUNED, TOGETHER, *(case.key for case in cases)]
    if all(key in found for key in keys):
        return {key: found[key] for key in keys}
    setup = set_up_finetunes(experiment, seed, pictures)
    start = time.perf_counter()
    base = _base(setup, folder, say)
    tuned = [_tuned(setup, base, n, folder, say) for n in range(len(setup.tasks))]
    together = _together(setup, base, folder, say)
    trained = time.perf_counter() - start
    embed = models.apply_fn(experiment.network)
    accuracy = partial(accuracy_by_task, embed, exam=setup.test, vectors=setup.vectors)
    if TUNED not in found:
        own = tuple(accuracy(model)[n] for n, model in enumerate(tuned))
        found[BASE] = Tuned(accuracy(base))
        found[TUNED] = Tuned(own, seconds=round(trained, 2))
        found[TOGETHER] = Tuned(accuracy(together))
        write_tuned(file, found)
    for number, case in enumerate(cases):
        if case.key in found:
            continue
        say(f"merging ({case.key})", number, len(cases))
        start = time.perf_counter()
        variables, scale = merged_by(case, setup, base, tuned)
        seconds = round(time.perf_counter() - start, 2)
        found[case.key] = Tuned(
            accuracy(variables), case.name, case.samples, scale, seconds
        )
        write_tuned(file, found)
    return {key: found[key] for key in keys}


def _has_statistics(experiment: FineTuneExperiment) -> bool:
    """Whether the networks keep running statistics."""
    images = jnp.zeros((1, experiment.side, experiment.side, CHANNELS))
    shapes = jax.eval_shape(experiment.network.init, jax.random.key(0), images)
    return "batch_stats" in shapes


def _base(setup: TuneSetup, folder: Path, say: Progress) -> PyTree:
    """Load or train the network that all fine-tunes start from."""
    shape = setup.base.images.shape[1:]
    network = setup.experiment.network
    start = partial(models.init, network, setup.keys["start"], shape)
    return _trained(setup, "base", start, setup.base, folder, say)


def _tuned(
    setup: TuneSetup, base: PyTree, number: int, folder: Path, say: Progress
) -> PyTree:
    """Load a fine-tune, or make it."""
    name = setup.experiment.finetunes[number]
    return _trained(setup, name, lambda: base, setup.tasks[number], folder, say)


def _together(setup: TuneSetup, base: PyTree, folder: Path, say: Progress) -> PyTree:
    """Load the base fine-tuned to all tasks at once, or make it."""
    images = np.concatenate([split.images for split in setup.tasks])
    classes = np.concatenate([split.classes for split in setup.tasks])
    return _trained(setup, TOGETHER, lambda: base, Split(images, classes), folder, say)


def _trained(
    setup: TuneSetup,
    name: str,
    start: Callable[[], PyTree],
    split: Split,
    folder: Path,
    say: Progress,
) -> PyTree:
    """Load what was trained before, or train."""
    experiment = setup.experiment
    config: TrainConfig = experiment.base if name == "base" else experiment.training
    goal = telling_apart(
        np.unique(split.classes).tolist(), split, setup.vectors, config.logit_scale
    )
    return trained_once(
        folder / name.replace(" ", "-").replace(",", ""),
        config.epochs,
        lambda keeping: train(
            NetworkSetup(experiment.network, config),
            start(),
            goal,
            key=setup.keys.get(name, setup.keys["merge"]),
            keeping=keeping,
            progress=prefixed(say, f"{name} "),
        ),
    )
