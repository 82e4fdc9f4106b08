"""Which roles should axes have while weights are compared for zip?

When the weight vectors of a label are compared, the other axes of its leaves are
brought to the merged order. The merge itself takes sums over axes that are contracted
and means over the others; `match` swaps these roles while it compares. This script
compares swapping them with using the same roles, on pairs of networks trained apart on
scikit-learn's digits, and prints joint test accuracy.

    python scripts/compare_roles.py --seeds 0 1 2 --networks mlp resnet20
"""

import argparse
import dataclasses

import numpy as np

import jmudsc
from jmudsc.experiments import demo
from jmudsc.experiments.accuracy import score_network
from jmudsc.tables import mean_and_std, table


def swapped(spec: jmudsc.PermutationSpec) -> jmudsc.PermutationSpec:
    """Make every consumed site a producing one and the other way round.

    Matching with such a spec undoes the swap of `match`.
    """
    sites = {site for label in spec.labels.values() for site in label.sites}
    return dataclasses.replace(spec, consumed=frozenset(sites - spec.consumed))


def joint_accuracies(network: str, seed: int) -> dict[tuple[str, str], float]:
    """Train a pair, merge it with both roles, return accuracies."""
    pair = demo.train_pair(network, seed)
    apply, batches = demo.apply_fn(network), demo.calibration()
    spec = jmudsc.infer_spec(apply, pair.parents[0], batches[0])
    moments = jmudsc.collect(spec, apply, pair.parents, batches)
    found = {}
    for method in ("weight-zip", "mudsc-zip"):
        for roles, used in (("as merged", swapped(spec)), ("swapped", spec)):
            match = jmudsc.match(
                used, pair.parents, moments, method=method, key=pair.match_key
            )
            merged = jmudsc.combine(spec, pair.parents, match.assignment)
            if spec.statistics:
                update = demo.update_fn(network)
                merged = jmudsc.reset_batch_stats(update, merged, batches)
            scores = score_network(apply, merged, pair.test, pair.vectors, demo.TASKS)
            found[method, roles] = scores.joint
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=["mlp", "resnet20"])
    arguments = parser.parse_args()
    rows = []
    for network in arguments.networks:
        runs = [joint_accuracies(network, seed) for seed in arguments.seeds]
        for method in ("weight-zip", "mudsc-zip"):
            values = {
                r: [run[method, r] for run in runs] for r in ("as merged", "swapped")
            }
            gains = np.subtract(values["as merged"], values["swapped"])
            cells = [mean_and_std(v) for v in values.values()]
            rows.append([f"{network}, {method}", *cells, mean_and_std(gains.tolist())])
    print(table(["network, method", "as merged", "swapped", "difference"], rows))


if __name__ == "__main__":
    main()
