"""What do repair, pooled statistics and the refit add after averaging?

Pairs of networks trained apart on scikit-learn's digits (0-4 and 5-9) are merged, and
the merged networks repaired in five ways; prints joint test accuracy. `resnet20-plain`
is the ResNet-20 without BatchNorm.

    python scripts/measure_repair.py --seeds 0 1 2
    python scripts/measure_repair.py --images 32 --networks mlp
"""

import argparse
import time
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import PyTree

import jmudsc
from jmudsc.experiments import demo
from jmudsc.experiments.accuracy import score_ensemble, score_network
from jmudsc.experiments.models import ResNet20
from jmudsc.experiments.training import NetworkSetup, TrainConfig
from jmudsc.tables import mean_and_std, table

METHODS = ("average", "mudsc-align", "mudsc-zip")
REPAIRS = ("none", "pooled", "repair", "refit", "refit + repair")
PLAIN = NetworkSetup(
    ResNet20(1, 512, norm=None),
    TrainConfig(
        epochs=30,
        batch_size=100,
        learning_rate=0.05,
        weight_decay=2e-3,
        logit_scale=8.0,
    ),
)


def repaired(
    network: str,
    pair: demo.Pair,
    method: str,
    spec: jmudsc.PermutationSpec,
    moments: Mapping[str, jmudsc.Moments],
    batches: list,
) -> Iterator[tuple[str, PyTree]]:
    """Merge a pair and yield the merged network, repaired in every way."""
    apply, parents = demo.apply_fn(network), pair.parents
    match = jmudsc.match(spec, parents, moments, method=method, key=pair.match_key)
    average = jmudsc.combine(spec, parents, match.assignment)
    yield "none", average
    if spec.statistics:
        pooled = jmudsc.pool_batch_stats(spec, parents, match.assignment, average)
        yield "pooled", pooled
    pairing = match.assignment
    rescaled = jmudsc.repair(spec, apply, parents, pairing, average, batches)
    yield "repair", rescaled
    fitted = jmudsc.refit(
        spec, apply, parents, pairing, average, batches, target="ensemble"
    )
    yield "refit", fitted
    rescaled = jmudsc.repair(spec, apply, parents, pairing, fitted, batches)
    yield "refit + repair", rescaled


def some_of(batches: list, images: int | None, seed: int) -> list:
    """Draw some calibration images, one batch; all of them for None."""
    if images is None:
        return batches
    whole = np.concatenate(batches)
    return [whole[np.random.default_rng(seed).permutation(len(whole))[:images]]]


def joint_accuracies(
    network: str, seed: int, images: int | None
) -> dict[tuple[str, str], float]:
    """Train a pair, merge and repair it in every way, return accuracies.

    Units are matched on all calibration images, whatever `images` is.
    """
    pair = demo.train_pair(network, seed)
    apply, batches = demo.apply_fn(network), demo.calibration()
    spec = jmudsc.infer_spec(apply, pair.parents[0], batches[0])
    moments = jmudsc.collect(spec, apply, pair.parents, batches)
    both = score_ensemble(apply, pair.parents, pair.test, pair.vectors, demo.TASKS)
    found = {("ensemble", "none"): both.joint}
    few = some_of(batches, images, seed)
    for method in METHODS:
        for repair, variables in repaired(network, pair, method, spec, moments, few):
            scores = score_network(
                apply, variables, pair.test, pair.vectors, demo.TASKS
            )
            found[method, repair] = scores.joint
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--networks", nargs="+", default=["mlp", "resnet20", "resnet20-plain"]
    )
    parser.add_argument("--images", type=int, help="to repair and refit on")
    arguments = parser.parse_args()
    demo.SETUPS["resnet20-plain"] = PLAIN
    start, rows = time.perf_counter(), []
    for network in arguments.networks:
        runs = [joint_accuracies(network, s, arguments.images) for s in arguments.seeds]
        for method in ("ensemble", *METHODS):
            cells = [
                mean_and_std([run[method, repair] for run in runs])
                if (method, repair) in runs[0]
                else "-"
                for repair in REPAIRS
            ]
            rows.append([f"{network}, {method}", *cells])
    print(table(["network, method", *REPAIRS], rows))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
