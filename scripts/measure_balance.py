"""How good are the balances that `search` and `auto` choose?

Pairs of networks trained apart on scikit-learn's digits (0-4 and 5-9) are merged at
eleven values of alpha. The first table has joint test accuracy at the alpha that each
way chooses, and the rank correlation, over alpha, of `auto`'s score with joint test
accuracy; the second the same correlation for scores that `auto` might have used.

    python scripts/measure_balance.py --seeds 0 1 2
"""

import argparse
import time
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float, PyTree
from scipy.stats import rankdata

import jmudsc
from jmudsc.experiments import demo
from jmudsc.experiments.accuracy import score_network
from jmudsc.experiments.datasets import digits
from jmudsc.merging.alpha_search import ALPHAS, joint_agreement, search_alpha
from jmudsc.tables import mean_and_std, table

METHODS = ("mudsc-align", "mudsc-zip")
CRITERIA = (
    "agreement",
    "cosine with all parents",
    "cosine with the surest parent",
    "nearest to the surest parent",
)

Outputs = Float[np.ndarray, "samples outputs"]
Scores = Mapping[str, list[float]]  # criterion, "search" or "test" -> one per alpha


def merged_at_all(network: str, pair: demo.Pair, method: str) -> Iterator[PyTree]:
    """Yield the merged network of every alpha, running statistics reset."""
    apply, batches, parents = demo.apply_fn(network), demo.calibration(), pair.parents
    spec = jmudsc.infer_spec(apply, parents[0], batches[0])
    moments = jmudsc.collect(spec, apply, parents, batches)
    match_at = jmudsc.matcher(spec, parents, moments, method=method, key=pair.match_key)
    for alpha in ALPHAS:
        merged = jmudsc.combine(spec, parents, match_at(alpha).assignment)
        if spec.statistics:
            update = demo.update_fn(network)
            merged = jmudsc.reset_batch_stats(update, merged, batches)
        yield merged


def outputs_of(network: str, variables: PyTree) -> Outputs:
    """Return the outputs for all calibration images."""
    apply = demo.apply_fn(network)
    rows = [np.asarray(apply(variables, batch)) for batch in demo.calibration()]
    return np.concatenate(rows).astype(np.float64)


def criteria_of(merged: Outputs, parents: list[Outputs]) -> dict[str, float]:
    """Return what each criterion says of a merged network, larger for better."""
    around = [x - x.mean(axis=0) for x in (merged, *parents)]
    squares = np.stack([(x**2).sum(axis=1) for x in around])
    own, *others = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in around]
    cosines = np.stack([(own * x).sum(axis=1) for x in others])
    sureness = squares[1:] / squares[1:].mean(axis=1, keepdims=True)
    surest = sureness.argmax(axis=0)
    with_surest = cosines[surest, np.arange(len(surest))]
    values = (
        joint_agreement(merged, parents),
        cosines.mean(),
        with_surest.mean(),
        (cosines.argmax(axis=0) == surest).mean(),
    )
    return dict(zip(CRITERIA, map(float, values), strict=True))


def scores_of(network: str, seed: int) -> dict[str, Scores]:
    """Train a pair, merge it at every alpha, and score what comes of each method."""
    pair = demo.train_pair(network, seed)
    apply = demo.apply_fn(network)
    parents = [outputs_of(network, variables) for variables in pair.parents]
    found: dict[str, Scores] = {}
    for method in METHODS:
        scores: dict[str, list[float]] = {}
        for merged in merged_at_all(network, pair, method):
            row = criteria_of(outputs_of(network, merged), parents)
            for name, split in (("search", digits()[0]), ("test", pair.test)):
                scored = score_network(apply, merged, split, pair.vectors, demo.TASKS)
                row[name] = scored.joint
            for name, value in row.items():
                scores.setdefault(name, []).append(value)
        found[method] = scores
    return found


def reached(scores: Scores, criterion: str) -> float:
    """Return joint test accuracy at the alpha that a criterion chooses."""
    numbered = dict(zip(ALPHAS, range(len(ALPHAS)), strict=True))
    best = search_alpha(numbered.__getitem__, lambda n: scores[criterion][n])
    return scores["test"][best.candidate]


def correlation(scores: Scores, criterion: str) -> float:
    """Return the rank correlation of a criterion with joint test accuracy."""
    ranks = [rankdata(scores[name]) for name in (criterion, "test")]
    return float(np.corrcoef(ranks)[0, 1])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=["mlp", "resnet20"])
    arguments = parser.parse_args()
    start, rows = time.perf_counter(), []
    ranks: dict[str, list[float]] = {}
    for network in arguments.networks:
        runs = [scores_of(network, seed) for seed in arguments.seeds]
        for method in METHODS:
            own = [run[method] for run in runs]
            columns = [[s["test"][ALPHAS.index(0.5)] for s in own]]
            columns += [
                [reached(s, name) for s in own]
                for name in ("search", "agreement", "test")
            ]
            means = {
                name: float(np.mean([correlation(s, name) for s in own]))
                for name in CRITERIA
            }
            for name, mean in means.items():
                ranks.setdefault(name, []).append(mean)
            cells = [*map(mean_and_std, columns), f"{means['agreement']:.2f}"]
            rows.append([f"{network}, {method}", *cells])
    header = ["network, method", "alpha = 0.5", "search", "auto", "best on test data"]
    print(table([*header, "rank correlation of auto"], rows))
    lines = [[name, f"{np.mean(values):.2f}"] for name, values in ranks.items()]
    print("\n" + table(["criterion", "mean rank correlation"], lines))
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
