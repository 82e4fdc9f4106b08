"""Whom should the refit of a merged network follow on each sample?

Pairs of networks trained apart on scikit-learn's digits (0-4 and 5-9) are merged and
refit to the parents' outputs in several ways, on a few or many calibration images;
prints joint test accuracy. `ensemble` and `sureness` do not know whose task an image is
from, the others do.

    python scripts/measure_targets.py --networks mlp vit --images 32 100 400
"""

import argparse
import sys
import time

import jax
import numpy as np

import jmudsc
from jmudsc.experiments import demo
from jmudsc.experiments.accuracy import score_network
from jmudsc.experiments.datasets import digits
from jmudsc.experiments.models import ViT
from jmudsc.experiments.training import NetworkSetup, TrainConfig
from jmudsc.tables import mean_and_std, table

VIT = NetworkSetup(
    ViT(64, 2, 48, 2, 4, 96),
    TrainConfig(epochs=60, batch_size=50, learning_rate=0.05, weight_decay=5e-4),
)
METHODS = ("average", "mudsc-align", "mudsc-zip")
WAYS = {
    "ensemble": {"target": "ensemble"},
    "sureness": {"target": "sureness"},
    "owner": {"target": "owner"},
    "owner, ridge .1": {"target": "owner", "ridge": 0.1},
}


def accuracies(
    network: str, seed: int, images: int, methods: list[str]
) -> dict[tuple[str, str], float]:
    """Train a pair, merge it, refit it in every way, and return test accuracies."""
    pair = demo.train_pair(network, seed)
    apply, parents, training = demo.apply_fn(network), pair.parents, digits()[0]
    chosen = np.random.default_rng(seed).permutation(len(training.images))[:images]
    seen, classes = training.images[chosen], training.classes[chosen]
    tasks = [seen[np.isin(classes, task)] for task in demo.TASKS]
    spec = jmudsc.infer_spec(apply, parents[0], seen)
    moments = jmudsc.collect(spec, apply, parents, [seen])
    found = {}
    for method in methods:
        match = jmudsc.match(
            spec, parents, moments, method=method, key=jax.random.key(seed)
        )
        average = jmudsc.combine(spec, parents, match.assignment)
        for way, options in WAYS.items():
            owned = options["target"] == "owner"
            fitted = jmudsc.refit(
                spec,
                apply,
                parents,
                match.assignment,
                average,
                tasks if owned else [seen],
                owners=[0, 1] if owned else None,
                **options,
            )
            found[method, way] = score_network(
                apply, fitted, pair.test, pair.vectors, demo.TASKS
            ).joint
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=["mlp", "vit"])
    parser.add_argument("--images", type=int, nargs="+", default=[32, 100, 400])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = parser.parse_args()
    demo.SETUPS["vit"] = VIT
    start, rows = time.perf_counter(), []
    for network in arguments.networks:
        for images in arguments.images:
            runs = [
                accuracies(network, seed, images, arguments.methods)
                for seed in arguments.seeds
            ]
            print(network, images, runs, file=sys.stderr, flush=True)
            for method in arguments.methods:
                cells = [
                    mean_and_std([run[method, way] for run in runs]) for way in WAYS
                ]
                rows.append([f"{network}, {images} images, {method}", *cells])
    print(table(["network, images, method", *WAYS], rows))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
