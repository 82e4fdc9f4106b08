"""Merge a network that tells odd digits from even ones with one that knows primes.

For every seed two bias-free MLPs are trained on the same images, merged by all seven
methods, with and without the least-squares refit, and measured on all test images;
prints loss and accuracy. Writes the parents and a recipe for every merge, of which
`jmudsc merge` and `jmudsc landscape` make figures. Parents that are there are used.

    python scripts/parity.py --seeds 0 1 2
    jmudsc merge runs/parity/seed-0/mudsc-zip.yaml
    jmudsc landscape runs/parity/seed-0/mudsc-zip.yaml
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

import jmudsc
from jmudsc.checkpoints.save import save_variables
from jmudsc.experiments import parity
from jmudsc.merging.options import MergeOptions
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.import_path import ImportPath
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import Source
from jmudsc.tables import mean_and_std, table

CALIBRATION = 10_000  # training images, for activations and the refit
DRAWN = 1_000  # test images, for the points of a landscape


def parents(seed: int, folder: Path, data: Mapping[str, Any]) -> list[PyTree]:
    """Load the two parents of a seed, or train and save them."""
    training, _ = parity.splits(**data)
    found = []
    for task in parity.TASKS:
        if not (folder / task).exists():
            trained = parity.train_parent(task, seed, training)
            save_variables(folder / task, trained)
        found.append(jmudsc.load(folder / task))
    return found


def merges(
    seed: int, models: list[PyTree], data: Mapping[str, Any]
) -> Iterator[tuple[str, PyTree]]:
    """Merge the parents by every method, as their recipes do, and refit the average."""
    apply = parity.apply_fn()
    batches = parity.calibration(seed, CALIBRATION, **data)
    spec = jmudsc.infer_spec(apply, models[0], batches[0])
    moments = jmudsc.collect(spec, apply, models, batches)
    key = jax.random.split(jax.random.key(seed))[1]  # that of jmudsc.merge
    for method in jmudsc.METHODS:
        match = jmudsc.match(spec, models, moments, method=method, key=key)
        merged = jmudsc.combine(spec, models, match.assignment)
        yield method, merged
        pairing = match.assignment
        fitted = jmudsc.refit(
            spec, apply, models, pairing, merged, batches, target="ensemble"
        )
        yield f"{method} + refit", fitted


def recipe(seed: int, name: str, data: Mapping[str, Any]) -> str:
    """Write the recipe of one merge."""
    method, _, refit = name.partition(" + ")
    arguments = {"seed": seed, **data}
    return dump_recipe(
        Recipe(
            models=tuple(Source(task) for task in parity.TASKS),
            apply_fn=ImportPath("jmudsc.experiments.parity:apply_fn", {}),
            batches=ImportPath(
                "jmudsc.experiments.parity:calibration",
                {"images": CALIBRATION, **arguments},
            ),
            options=MergeOptions(
                method=method, refit="least-squares" if refit else None
            ),
            losses={
                task: ImportPath(
                    "jmudsc.experiments.parity:loss",
                    {"task": task, "images": DRAWN, **arguments},
                )
                for task in parity.TASKS
            },
            seed=seed,
            output=name.replace(" + ", "-"),
        )
    )


def measured(seed: int, out: Path, data: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return per network the losses, their mean, the accuracies and their mean."""
    folder = out / f"seed-{seed}"
    models = parents(seed, folder, data)
    rows: dict[str, list[float]] = {}
    vectors, (_, test) = parity.class_vectors(seed), parity.splits(**data)
    own = {task: parity.reclassified(test, task) for task in parity.TASKS}

    def measure(variables: PyTree) -> list[float]:
        pairs = [parity.scores(variables, own[t], vectors, t) for t in own]
        columns = [[float(x) for x in column] for column in zip(*pairs, strict=True)]
        return [x for column in columns for x in (*column, sum(column) / len(column))]

    for task, variables in zip(parity.TASKS, models, strict=True):
        rows[f"parent, {task}"] = measure(variables)
    for name, variables in merges(seed, models, data):
        rows[name] = measure(variables)
        file = folder / f"{name.replace(' + ', '-')}.yaml"
        file.write_text(recipe(seed, name, data))
    return rows


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/parity"))
    parser.add_argument("--dataset", default="mnist", help="or another one of digits")
    parser.add_argument("--data-dir", help="where TFDS keeps its datasets")
    arguments = parser.parse_args()
    start = time.perf_counter()
    data: dict[str, Any] = {
        "dataset": arguments.dataset,
        "data_dir": arguments.data_dir,
    }
    runs = [measured(seed, arguments.out, data) for seed in arguments.seeds]
    tasks = list(parity.TASKS)
    header = [f"{what}, {t}" for what in ("loss", "accuracy") for t in (*tasks, "mean")]
    rows = [
        [name, *map(mean_and_std, zip(*(run[name] for run in runs), strict=True))]
        for name in runs[0]
    ]
    print(table(["network", *header], rows))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
