"""Class split: train networks on parts of the classes, merge and score them all.

Everything that is done is on disk: trainings, networks, and the scores of every
network. A run that was stopped goes on where it was.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax
from jaxtyping import PyTree

from jmudsc.derivation.check_spec import check_spec
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.experiments import models
from jmudsc.experiments.accuracy import score_ensemble, score_network, Scores
from jmudsc.experiments.class_split_config import Experiment, read_experiment
from jmudsc.experiments.class_split_report import (
    describe,
    Entry,
    read_entries,
    write_entries,
    write_whole,
)
from jmudsc.experiments.datasets import load_splits, only, Split
from jmudsc.experiments.finetune_config import FineTuneExperiment
from jmudsc.experiments.finetune_images import load_pictures
from jmudsc.experiments.finetune_report import describe_finetunes
from jmudsc.experiments.finetune_run import score_finetunes
from jmudsc.experiments.seed_setup import SeedSetup, set_up_seed
from jmudsc.experiments.tasks_config import TaskExperiment
from jmudsc.experiments.tasks_report import describe_tasks, row_name
from jmudsc.experiments.tasks_run import score_pairs
from jmudsc.experiments.training import NetworkSetup, telling_apart, train
from jmudsc.experiments.training_state import trained_once
from jmudsc.matching.coordinate_descent import Match, matcher
from jmudsc.matching.methods import TABLE
from jmudsc.matching.moments import collect, Moments
from jmudsc.merging.alpha_search import search_alpha
from jmudsc.progress import prefixed, Progress
from jmudsc.repairs.batch_stats import reset_batch_stats
from jmudsc.repairs.least_squares import refit
from jmudsc.repairs.rescale import repair as rescale
from jmudsc.spec.permutation_spec import PermutationSpec

ALL = "all classes"
Scored = TypeVar("Scored")


def run_experiment(
    config: Path,
    seeds: Sequence[int] = (0,),
    out: Path | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Path, str]:
    """Train, merge and score what a config says.

    Args:
        config: a YAML file.
        seeds: for each the networks are trained anew, on other tasks if those are
            drawn.
        out: directory of the results; if it holds some of this experiment, they are
            used. `runs/` and the name of the config, if None.
        data_dir: where TFDS keeps its datasets, None for its own place; or an npz file
            of packed datasets.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The report's file, and its text in Markdown.

    Raises:
        FileNotFoundError: if the config or the dataset is not there.
        ValueError: if something in the config is wrong, or `out` holds the results of
            another experiment.
    """
    experiment = read_experiment(config)
    out = Path("runs") / config.stem if out is None else out
    _claim(out, experiment)
    command = _command(config, seeds, data_dir)
    if isinstance(experiment, FineTuneExperiment):
        parts = experiment.digits, experiment.photos, experiment.side
        pictures = load_pictures(*parts, data_dir)
        runs = _runs(
            partial(score_finetunes, experiment, pictures), seeds, out, progress
        )
        text = describe_finetunes(experiment, command, seeds, runs)
        write_whole(out / "report.md", text)
        return out / "report.md", text
    training, test = load_splits(
        experiment.dataset, experiment.train_split, experiment.test_split, data_dir
    )
    if isinstance(experiment, TaskExperiment):
        score = partial(score_pairs, experiment, training, test)
        runs = _runs(score, seeds, out, progress)
        text = describe_tasks(experiment, command, seeds, runs)
    else:
        score = partial(_score_all, experiment, training, test)
        runs = _runs(score, seeds, out, progress)
        text = describe(experiment, command, seeds, runs)
    write_whole(out / "report.md", text)
    return out / "report.md", text


def _runs(
    score: Callable[[int, Path, Progress], Scored],
    seeds: Sequence[int],
    out: Path,
    progress: Progress | None,
) -> list[Scored]:
    """Score the networks of every seed, each in a folder of its own."""
    return [
        score(seed, out / f"seed-{seed}", prefixed(progress, f"seed {seed}: "))
        for seed in seeds
    ]


def _command(config: Path, seeds: Sequence[int], data_dir: Path | None) -> str:
    """Write the command that does this again."""
    numbers = " ".join(map(str, seeds))
    data = "" if data_dir is None else " --data-dir DIR"
    return f"jmudsc experiment configs/{config.name} --seeds {numbers}{data}"


def _claim(
    out: Path, experiment: Experiment | TaskExperiment | FineTuneExperiment
) -> None:
    """Write down whose results a directory holds, or compare."""
    file = out / "experiment.txt"
    if not file.exists():
        write_whole(file, f"{experiment}\n")
    elif file.read_text() != f"{experiment}\n":
        raise ValueError(
            f"{out}: expected a new directory or results of this experiment, got those "
            "of another. Choose a directory with --out, or remove this one."
        )


def _score_all(
    experiment: Experiment,
    training: Split,
    test: Split,
    seed: int,
    folder: Path,
    say: Progress,
) -> dict[str, Entry]:
    """Train, merge and score all networks of a seed that have no score yet."""
    setup = set_up_seed(experiment, seed, training, test)
    file, wanted = folder / "scores.json", _names(setup)
    found = read_entries(file)
    if all(name in found for name in wanted):
        return {name: found[name] for name in wanted}
    for number, name in enumerate(_trained_names(setup)):
        if name not in found:
            start = time.perf_counter()
            variables = _network(setup, number, folder, say)
            seconds = time.perf_counter() - start
            found[name] = Entry(_scores(setup, variables), seconds)
            write_entries(file, found)
    for name, entry in _merges(setup, folder, found, say):
        found[name] = entry
        write_entries(file, found)
    return {name: found[name] for name in wanted}


def _trained_names(setup: SeedSetup) -> list[str]:
    return [*(f"parent {chr(65 + n)}" for n in range(len(setup.tasks))), ALL]


def _names(setup: SeedSetup) -> list[str]:
    """Name all networks in the order of the report."""
    repairs = setup.experiment.repairs
    merged = [way.row(repair) for way in _ways(setup) for repair in repairs]
    return [*_trained_names(setup), "ensemble", *merged]


@dataclass(frozen=True)
class _Way:
    """A method of matching, and what models are aligned to."""

    method: str
    reference: str

    def row(self, repair: str) -> str:
        """Name what comes of it in the report."""
        aligned = "" if self.reference == "first" else f" ({self.reference})"
        return row_name(f"{self.method}{aligned}", repair)


def _ways(setup: SeedSetup) -> list[_Way]:
    """List the methods, each with what models are aligned to."""
    experiment, many = setup.experiment, len(setup.tasks) > 2
    return [
        _Way(method, reference)
        for method in experiment.methods
        for reference in experiment.references
        if reference == experiment.references[0] or (many and TABLE[method].aligns)
    ]


def _scores(setup: SeedSetup, variables: PyTree) -> Scores:
    apply = models.apply_fn(setup.experiment.network)
    return score_network(apply, variables, setup.test, setup.vectors, setup.tasks)


def _network(setup: SeedSetup, number: int, folder: Path, say: Progress) -> PyTree:
    """Load a parent, or the network of all classes after them; train it if need be."""
    name = _trained_names(setup)[number]
    every = tuple(sorted(c for task in setup.tasks for c in task))
    classes = (*setup.tasks, every)[number]
    init_key, train_key = jax.random.split(setup.network_keys[number])
    network, config = setup.experiment.network, setup.experiment.training
    images = only(setup.training, classes)
    goal = telling_apart(classes, images, setup.vectors, config.logit_scale)
    return trained_once(
        folder / name.replace(" ", "-"),
        config.epochs,
        lambda keeping: train(
            NetworkSetup(network, config),
            models.init(network, init_key, images.images.shape[1:]),
            goal,
            key=train_key,
            keeping=keeping,
            progress=prefixed(say, f"{name} "),
        ),
    )


def _merges(
    setup: SeedSetup, folder: Path, found: Mapping[str, Entry], say: Progress
) -> Iterator[tuple[str, Entry]]:
    """Yield what is not there yet of the ensemble and all merged networks."""
    count = len(setup.tasks)
    parents = [_network(setup, number, folder, say) for number in range(count)]
    experiment = setup.experiment
    apply = models.apply_fn(experiment.network)
    if "ensemble" not in found:
        together = score_ensemble(
            apply,
            parents,
            setup.test,
            setup.vectors,
            setup.tasks,
            logit_scale=experiment.training.logit_scale,
        )
        yield "ensemble", Entry(together, 0.0)
    missing = {
        way: [f for f in experiment.repairs if way.row(f) not in found]
        for way in _ways(setup)
    }
    missing = {way: repairs for way, repairs in missing.items() if repairs}
    if not missing:
        return
    say("collecting activations", 0, 1)
    first = setup.calibration[0]
    spec = infer_spec(apply, parents[0], first)
    check_spec(spec, apply, parents[0], first, key=setup.check_key)
    moments = collect(spec, apply, parents, setup.calibration)
    for number, (way, repairs) in enumerate(missing.items()):
        say("merging", number, len(missing))
        start = time.perf_counter()
        alpha, matched = _match(setup, spec, parents, moments, way, say)
        matching = time.perf_counter() - start
        for repair in repairs:
            start = time.perf_counter()
            merged = _repaired(setup, spec, parents, way, matched, repair)
            seconds = matching + time.perf_counter() - start
            yield way.row(repair), Entry(_scores(setup, merged), seconds, alpha)


def _match(
    setup: SeedSetup,
    spec: PermutationSpec,
    parents: Sequence[PyTree],
    moments: Mapping[str, Moments],
    way: _Way,
    say: Progress,
) -> tuple[float | None, Match]:
    """Match; a method that takes alpha by that of the best joint training accuracy."""
    matched_at = matcher(
        spec,
        parents,
        moments,
        method=way.method,
        reference=way.reference,
        key=setup.match_key,
    )
    if not TABLE[way.method].blends:
        return None, matched_at(0.5)  # which says nothing here
    apply, alphas = models.apply_fn(setup.experiment.network), setup.experiment.alphas

    def joint(matched: Match) -> float:
        say(f"{way.method}, choosing alpha", 0, None)
        merged = _repaired(setup, spec, parents, way, matched, "none")
        images, vectors, tasks = setup.search, setup.vectors, setup.tasks
        return score_network(apply, merged, images, vectors, tasks).joint

    best = search_alpha(matched_at, joint, alphas)
    return best.alpha, best.candidate


def _repaired(
    setup: SeedSetup,
    spec: PermutationSpec,
    parents: Sequence[PyTree],
    way: _Way,
    matched: Match,
    repair: str,
) -> PyTree:
    """Average matched parents, and do what is to be done after that."""
    network, batches = setup.experiment.network, setup.calibration
    apply, assignment = models.apply_fn(network), matched.assignment
    merged = TABLE[way.method].combine(spec, parents, assignment, None)
    if repair == "refit":
        return refit(spec, apply, parents, assignment, merged, batches)
    if repair == "refit by task":
        by_task, owners = setup.by_task, setup.owners
        return refit(spec, apply, parents, assignment, merged, by_task, owners=owners)
    if repair == "repair":
        return rescale(spec, apply, parents, assignment, merged, batches)
    if spec.statistics:
        return reset_batch_stats(models.update_fn(network), merged, batches)
    return merged
