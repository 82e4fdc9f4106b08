"""What does the refit of merged networks with separate heads add, and where?

Merges all pairs of an experiment on tasks, whose networks are trained first if they are
not there, and fits nothing, the trunk, the heads, or both; prints scaled performance.

    python scripts/measure_heads.py configs/digits-tasks.yaml --seeds 0 1 2
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from jmudsc import infer_spec, paths
from jmudsc.experiments import models
from jmudsc.experiments.class_split_config import read_experiment
from jmudsc.experiments.datasets import load_splits
from jmudsc.experiments.scaled_performance import scaled_performance
from jmudsc.experiments.tasks_config import TaskExperiment
from jmudsc.experiments.tasks_report import pairs_of
from jmudsc.experiments.tasks_run import (
    inputs_of,
    network_at,
    pair_merger,
    set_up_tasks,
    TasksSetup,
    test_loss,
)
from jmudsc.progress import silent
from jmudsc.reordering.permute import identity
from jmudsc.repairs.least_squares import refit_layers
from jmudsc.repairs.merger import Merger
from jmudsc.tables import mean_and_std, table

METHODS = ("average", "mudsc-align", "mudsc-zip")
FITTED = ("nothing", "heads", "trunk", "trunk and heads")


def repaired(
    setup: TasksSetup, pair: tuple[str, str], parents: list[PyTree], method: str
) -> Iterator[tuple[str, list[PyTree]]]:
    """Yield the networks of a pair, fitted in every way."""
    merge_by = pair_merger(setup, pair, parents)
    plain = merge_by(method=method).networks
    both = merge_by(method=method, refit="least-squares").networks
    yield "nothing", list(plain)
    batches = inputs_of(setup, pair)
    heads = []
    for task, parent, network in zip(pair, parents, plain, strict=True):
        apply = models.apply_fn(setup.networks[task])
        spec = infer_spec(apply, parent, batches[0])
        stay = {name: row[None] for name, row in identity(spec).items()}
        own = {path for path in paths.flatten(network) if "/head/" in path}
        merger = Merger(spec, apply, [parent], stay, (1.0,))
        heads.append(refit_layers(merger, network, batches, own)[0])
    yield "heads", heads
    trunks = []
    for old, new in zip(plain, both, strict=True):
        leaves = paths.flatten(new)
        kept = {path: x for path, x in paths.flatten(old).items() if "/head/" in path}
        trunks.append(paths.unflatten(new, leaves | kept))
    yield "trunk", trunks
    yield "trunk and heads", list(both)


def reached(setup: TasksSetup, folder: Path) -> dict[tuple[str, str], float]:
    """Return the mean scaled performance over pairs by method and what is fitted."""
    tasks = setup.experiment.tasks
    parents = {task: network_at(setup, task, folder, silent) for task in tasks}
    limits = {
        task: (setup.constants[task][0], test_loss(setup, task, parents[task]))
        for task in tasks
    }
    found: dict[tuple[str, str], list[float]] = {}
    for pair in pairs_of(tasks):
        own = [parents[task] for task in pair]
        for method in METHODS:
            for fitted, networks in repaired(setup, pair, own, method):
                for task, network in zip(pair, networks, strict=True):
                    loss = test_loss(setup, task, network)
                    constant, parent = limits[task]
                    scaled = scaled_performance(constant, parent, loss)
                    found.setdefault((method, fitted), []).append(scaled)
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """Run the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="of the experiment")
    parser.add_argument("--data-dir", type=Path)
    args = parser.parse_args()
    experiment = read_experiment(args.config)
    if not isinstance(experiment, TaskExperiment):
        raise SystemExit(f"{args.config}: its tasks must be names of tasks")
    out = args.out or Path("runs") / args.config.stem
    training, test = load_splits(
        experiment.dataset, experiment.train_split, experiment.test_split, args.data_dir
    )
    runs = []
    for seed in args.seeds:
        setup = set_up_tasks(experiment, seed, training, test)
        runs.append(reached(setup, out / f"seed-{seed}"))
    rows = [
        [
            method,
            *(mean_and_std([run[method, fit] for run in runs]) for fit in FITTED),
        ]
        for method in METHODS
    ]
    print(table(["fitted", *FITTED], rows))


if __name__ == "__main__":
    main()
