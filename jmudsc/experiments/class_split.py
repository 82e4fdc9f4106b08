"""Experiment: train networks apart, merge them by every method, and score them all.

Everything that is finished is on disk: trainings, networks, and the scores of every
network. A run that was stopped goes on where it was.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax
from jaxtyping import PyTree

from jmudsc.derivation.check_spec import check_spec
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.experiments import models
from jmudsc.experiments.accuracy import ensemble, evaluate, Scores
from jmudsc.experiments.class_split_config import Experiment, read_experiment
from jmudsc.experiments.class_split_report import (
    describe,
    Entry,
    read_entries,
    write_entries,
    write_whole,
)
from jmudsc.experiments.datasets import load_splits, only, Split
from jmudsc.experiments.seed_setup import Ground, lay_ground
from jmudsc.experiments.tasks_config import TaskExperiment
from jmudsc.experiments.tasks_report import describe_tasks, row_name
from jmudsc.experiments.tasks_run import score_pairs
from jmudsc.experiments.training import train
from jmudsc.experiments.training_state import states_every, trained_once
from jmudsc.matching.coordinate_descent import Match, matcher
from jmudsc.matching.methods import TABLE
from jmudsc.matching.moments import collect, Moments
from jmudsc.merging.alpha_search import search_alpha
from jmudsc.progress import prefixed, Progress
from jmudsc.reordering.combine import combine
from jmudsc.repairs.batch_stats import reset_batch_stats
from jmudsc.repairs.least_squares import refit
from jmudsc.repairs.rescale import repair
from jmudsc.spec.permutation_spec import PermutationSpec

ALL = "all classes"
Found = TypeVar("Found")


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
        data_dir: where TFDS keeps its datasets; None for its own place.
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
    splits = load_splits(
        experiment.dataset, experiment.train_split, experiment.test_split, data_dir
    )
    _claim(out, experiment)
    command = _command(config, seeds, data_dir)
    if isinstance(experiment, TaskExperiment):
        score = partial(score_pairs, experiment)
        runs = _runs(score, seeds, splits, out, progress)
        text = describe_tasks(experiment, command, seeds, runs)
    else:
        score = partial(_score_all, experiment)
        runs = _runs(score, seeds, splits, out, progress)
        text = describe(experiment, command, seeds, runs)
    write_whole(out / "report.md", text)
    return out / "report.md", text


def _runs(
    score: Callable[[int, Split, Split, Path, Progress], Found],
    seeds: Sequence[int],
    splits: tuple[Split, Split],
    out: Path,
    progress: Progress | None,
) -> list[Found]:
    """Score the networks of every seed, each in a folder of its own."""
    return [
        score(seed, *splits, out / f"seed-{seed}", prefixed(progress, f"seed {seed}: "))
        for seed in seeds
    ]


def _command(config: Path, seeds: Sequence[int], data_dir: Path | None) -> str:
    """Write the command that does this again."""
    numbers = " ".join(map(str, seeds))
    data = "" if data_dir is None else " --data-dir DIR"
    return f"jmudsc experiment configs/{config.name} --seeds {numbers}{data}"


def _claim(out: Path, experiment: Experiment | TaskExperiment) -> None:
    """Write down whose results a directory holds, or compare."""
    file = out / "experiment.txt"
    if not file.exists():
        write_whole(file, f"{experiment}\n")
    elif file.read_text() != f"{experiment}\n":
        raise ValueError(
            f"{out}: holds the results of another experiment, a new directory is "
            "needed; choose one with --out, or remove this one."
        )


def _score_all(
    experiment: Experiment,
    seed: int,
    training: Split,
    test: Split,
    folder: Path,
    say: Progress,
) -> dict[str, Entry]:
    """Train, merge and score all networks of a seed that have no score yet."""
    ground = lay_ground(experiment, seed, training, test)
    file, wanted = folder / "scores.json", _names(ground)
    found = read_entries(file)
    if all(name in found for name in wanted):
        return {name: found[name] for name in wanted}
    for number, name in enumerate(_trained_names(ground)):
        if name not in found:
            start = time.perf_counter()
            variables = _network(ground, number, folder, say)
            seconds = time.perf_counter() - start
            found[name] = Entry(_scores(ground, variables), seconds)
            write_entries(file, found)
    for name, entry in _merges(ground, folder, found, say):
        found[name] = entry
        write_entries(file, found)
    return {name: found[name] for name in wanted}


def _trained_names(ground: Ground) -> list[str]:
    return [*(f"parent {chr(65 + n)}" for n in range(len(ground.tasks))), ALL]


def _names(ground: Ground) -> list[str]:
    """Name all networks in the order of the report."""
    finishes = ground.experiment.finishes
    merged = [_row(*way, finish) for way in _ways(ground) for finish in finishes]
    return [*_trained_names(ground), "ensemble", *merged]


def _ways(ground: Ground) -> list[tuple[str, str]]:
    """List the methods, each with what models are aligned to."""
    experiment, many = ground.experiment, len(ground.tasks) > 2
    return [
        (method, reference)
        for method in experiment.methods
        for reference in experiment.references
        if reference == experiment.references[0]
        or (many and TABLE[method].pairing == "align")
    ]


def _row(method: str, reference: str, finish: str) -> str:
    way = method if reference == "first" else f"{method} ({reference})"
    return row_name(way, finish)


def _scores(ground: Ground, variables: PyTree) -> Scores:
    apply = models.apply_fn(ground.experiment.network)
    return evaluate(apply, variables, ground.test, ground.vectors, ground.tasks)


def _network(ground: Ground, number: int, folder: Path, say: Progress) -> PyTree:
    """Load a parent, or the network of all classes after them; train it if need be."""
    name = _trained_names(ground)[number]
    every = tuple(sorted(c for task in ground.tasks for c in task))
    classes = (*ground.tasks, every)[number]
    init_key, train_key = jax.random.split(ground.network_keys[number])
    experiment, shape = ground.experiment, ground.training.images.shape[1:]
    return trained_once(
        folder / name.replace(" ", "-"),
        lambda state: train(
            experiment.network,
            models.init(experiment.network, init_key, shape),
            only(ground.training, classes),
            ground.vectors,
            classes,
            key=train_key,
            config=experiment.training,
            folder=state,
            every=states_every(experiment.training.epochs),
            progress=prefixed(say, f"{name} "),
        ),
    )


def _merges(
    ground: Ground, folder: Path, found: Mapping[str, Entry], say: Progress
) -> Iterator[tuple[str, Entry]]:
    """Yield what is not there yet of the ensemble and all merged networks."""
    count = len(ground.tasks)
    parents = [_network(ground, number, folder, say) for number in range(count)]
    experiment = ground.experiment
    apply = models.apply_fn(experiment.network)
    if "ensemble" not in found:
        both = apply, parents, ground.test, ground.vectors, ground.tasks
        scale = experiment.training.logit_scale
        yield "ensemble", Entry(ensemble(*both, logit_scale=scale), 0.0)
    missing = {
        way: [f for f in experiment.finishes if _row(*way, f) not in found]
        for way in _ways(ground)
    }
    missing = {way: finishes for way, finishes in missing.items() if finishes}
    if not missing:
        return
    say("collecting activations", 0, 1)
    first = ground.calibration[0]
    spec = infer_spec(apply, parents[0], first)
    check_spec(spec, apply, parents[0], first, key=ground.check_key)
    moments = collect(spec, apply, parents, ground.calibration)
    for number, (way, finishes) in enumerate(missing.items()):
        say("merging", number, len(missing))
        start = time.perf_counter()
        alpha, matched = _match(ground, spec, parents, moments, *way, say)
        matching = time.perf_counter() - start
        for finish in finishes:
            start = time.perf_counter()
            merged = _finished(ground, spec, parents, matched, finish)
            seconds = matching + time.perf_counter() - start
            yield (
                _row(*way, finish),
                Entry(_scores(ground, merged), seconds, alpha),
            )


def _match(
    ground: Ground,
    spec: PermutationSpec,
    parents: Sequence[PyTree],
    moments: Mapping[str, Moments],
    method: str,
    reference: str,
    say: Progress,
) -> tuple[float | None, Match]:
    """Match; a method that takes alpha by that of the best joint training accuracy."""
    matched_at = matcher(
        spec,
        parents,
        moments,
        method=method,
        reference=reference,
        key=ground.match_key,
    )
    if not TABLE[method].blends:
        return None, matched_at(0.5)  # which says nothing here
    apply, alphas = models.apply_fn(ground.experiment.network), ground.experiment.alphas

    def joint(matched: Match) -> float:
        say(f"{method}, choosing alpha", 0, None)
        merged = _finished(ground, spec, parents, matched, "none")
        scored = apply, merged, ground.search, ground.vectors, ground.tasks
        return evaluate(*scored).joint

    best = search_alpha(matched_at, joint, alphas)
    return best.alpha, best.candidate


def _finished(
    ground: Ground,
    spec: PermutationSpec,
    parents: Sequence[PyTree],
    matched: Match,
    finish: str,
) -> PyTree:
    """Average matched parents, and do what is to be done after that."""
    model, batches = ground.experiment.network, ground.calibration
    merged = combine(spec, parents, matched.assignment)
    parts = spec, models.apply_fn(model), parents, matched.assignment, merged
    if finish == "refit":
        return refit(*parts, batches)
    if finish == "refit by task":
        return refit(*parts, ground.by_task, owners=ground.owners)
    if finish == "repair":
        return repair(*parts, batches)
    if spec.statistics:
        return reset_batch_stats(models.update_fn(model), merged, batches)
    return merged
