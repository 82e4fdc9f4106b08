"""What does it bring to merge up to a depth only, and keep the rest apart?

Pairs of ResNet-20 trained apart on scikit-learn's digits (0-4 and 5-9) are merged but
for the leaves beyond a depth; prints test accuracy, the mean of each network's on its
own task.

    python scripts/measure_partial.py --seeds 0 1 2
"""

import argparse
import time

import jmudsc
from jmudsc.experiments import demo
from jmudsc.experiments.accuracy import score_network
from jmudsc.tables import mean_and_std, table

METHODS = ("mudsc-align", "mudsc-zip")
NETWORK = "resnet20"
LAST = "*/Dense_0/*"
DEPTHS = {
    "nothing": [],
    "the last layer": [LAST],
    "the last stage and layer": ["*/_Block_[6-8]/*", LAST],
    "the last two stages and layer": ["*/_Block_[3-8]/*", LAST],
}


def accuracies(seed: int) -> dict[tuple[str, str], float]:
    """Train a pair, merge it to every depth by every method, return accuracies."""
    pair = demo.train_pair(NETWORK, seed)
    apply, batches = demo.apply_fn(NETWORK), demo.calibration()
    found = {}
    for depth, separate in DEPTHS.items():
        for method in METHODS:
            result = jmudsc.merge(
                apply,
                pair.parents,
                batches,
                method=method,
                key=pair.match_key,
                separate=separate,
                update_fn=demo.update_fn(NETWORK),
                held_out=None,
            )
            networks = result.networks or [result.variables] * len(demo.TASKS)
            scores = [
                score_network(apply, network, pair.test, pair.vectors, demo.TASKS)
                for network in networks
            ]
            own = [score.per_task[task] for task, score in enumerate(scores)]
            found[depth, method] = sum(own) / len(own)
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    start = time.perf_counter()
    runs = [accuracies(seed) for seed in parser.parse_args().seeds]
    rows = [
        [depth, *(mean_and_std([run[depth, m] for run in runs]) for m in METHODS)]
        for depth in DEPTHS
    ]
    print(table(["separate", *METHODS], rows))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
