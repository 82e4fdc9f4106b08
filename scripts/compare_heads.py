"""Compare pairing whole heads with pairing the heads of q/k and of v apart.

    python scripts/compare_heads.py --seeds 0 1 2 3 4 5 6 7 8 9

Trains pairs of vision transformers from different initializations, both on all classes
(`same`) or on the two parts of an experiment (`halves`; its parents are taken if they
are there). Each pair is merged with the derived spec and with heads apart, which is no
symmetry (`heads_apart`), alpha chosen for each on training images. Prints test accuracy
and cross-entropy over all classes, means over the seeds with standard errors, those of
differences paired. For `same`, what the loss of a merged network is above that of its
parents is the barrier at the midpoint. The second table is what matching alone makes of
the second parent, before anything is averaged.
"""

import argparse
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from heads_apart import Assignment, both_specs, differing, repaired, REPAIRS
from jaxtyping import PyTree

from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.experiments import models
from jmudsc.experiments.class_split_config import Experiment, read_experiment
from jmudsc.experiments.datasets import batches, load_splits, only, Split
from jmudsc.experiments.seed_setup import SeedSetup, set_up_seed
from jmudsc.experiments.training import cosines, NetworkSetup, telling_apart, train
from jmudsc.experiments.training_state import trained_once
from jmudsc.matching.activation_statistics import collect
from jmudsc.matching.coordinate_descent import match, matcher
from jmudsc.matching.methods import TABLE
from jmudsc.matching.moments import Moments
from jmudsc.merging.alpha_search import search_alpha
from jmudsc.reordering.combine import combine
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.tables import table
from jmudsc.types import ApplyFn

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/digits-vit-wide.yaml"
METHODS = ("weight-align", "activation-align", "mudsc-align", "mudsc-zip")
PAIRS = ("same", "halves")

# What is measured of one network, by name; and of all networks of a seed, by
# ("parents",) the mean of both, ("second",) the second of them, (method, repair, spec)
# a merged one, and (method, spec) the second parent as it was matched.
Numbers = dict[str, float]
Measured = dict[tuple[str, ...], Numbers]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two networks.

    Attributes:
        setup: of their seed.
        parents: the variables of the two.
    """

    setup: SeedSetup
    parents: Sequence[PyTree]

    @property
    def apply(self) -> ApplyFn:
        """The function of both."""
        return models.apply_fn(self.setup.experiment.network)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=PAIRS)
    parser.add_argument("--repairs", nargs="+", choices=REPAIRS, default=REPAIRS)
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    start = time.perf_counter()
    setups = setups_of(given.config, given.seeds, given.data_dir)
    for name in given.pairs:
        runs = []
        for seed, setup in setups.items():
            folder = given.runs / given.config.stem / f"seed-{seed}"
            runs.append(measured(pair_of(setup, name, folder), given.repairs))
        print(f"{name}:\n\n{merges_table(runs)}\n\n{moved_table(runs)}\n")
    print(f"{time.perf_counter() - start:.0f} s in all")


def setups_of(
    config: Path, seeds: Sequence[int], data_dir: Path | None
) -> dict[int, SeedSetup]:
    """Set up every seed of an experiment on two parts of the classes."""
    experiment = read_experiment(config)
    if not isinstance(experiment, Experiment) or experiment.tasks != 2:
        raise SystemExit(f"{config}: two random parts of the classes are needed.")
    training, test = load_splits(
        experiment.dataset, experiment.train_split, experiment.test_split, data_dir
    )
    return {seed: set_up_seed(experiment, seed, training, test) for seed in seeds}


def pair_of(setup: SeedSetup, name: str, folder: Path) -> Pair:
    """Load the two networks of a pair; train them if need be."""
    if name == "halves":
        parents = [
            trained(setup, n, task, folder / f"parent-{'AB'[n]}")
            for n, task in enumerate(setup.tasks)
        ]
        return Pair(setup, parents)
    every = classes_of(setup)
    parents = [trained(setup, n, every, folder / f"same-{'AB'[n]}") for n in range(2)]
    return Pair(setup, parents)


def trained(
    setup: SeedSetup, number: int, classes: Sequence[int], path: Path
) -> PyTree:
    """Train as experiments do, each network from its own start in its own order."""
    init_key, train_key = jax.random.split(setup.network_keys[number])
    model, config = setup.experiment.network, setup.experiment.training
    images = only(setup.training, classes)
    return trained_once(
        path,
        config.epochs,
        lambda keeping: train(
            NetworkSetup(model, config),
            models.init(model, init_key, images.images.shape[1:]),
            telling_apart(classes, images, setup.vectors, config.logit_scale),
            key=train_key,
            keeping=keeping,
        ),
    )


def classes_of(setup: SeedSetup) -> list[int]:
    """Return the classes of both parents, in ascending order."""
    return sorted(c for task in setup.tasks for c in task)


def measured(pair: Pair, repairs: Sequence[str]) -> Measured:
    """Measure the parents, all merges with both specs, and what matching alone does."""
    setup, first = pair.setup, pair.setup.calibration[0]
    whole = infer_spec(pair.apply, pair.parents[0], first)
    specs = both_specs(whole, pair.apply, pair.parents[0], first, setup.check_key)
    moments = collect(whole, pair.apply, pair.parents, setup.calibration)
    scores = functools.partial(scores_of, setup, setup.test)
    one, other = map(scores, pair.parents)
    mean = {name: (one[name] + other[name]) / 2 for name in one}
    found: Measured = {("parents",): mean, ("second",): {**other, "differ": 0.0}}
    stay = match(whole, pair.parents, None, method="average", key=setup.match_key)
    for repair, merged in merges(pair, whole, whole, stay.assignment, repairs):
        found["average", repair, "whole"] = scores(merged)
    for method in METHODS:
        for name, spec in specs.items():
            assignment = matched(pair, spec, moments, method)
            for repair, merged in merges(pair, whole, spec, assignment, repairs):
                found[method, repair, name] = scores(merged)
            if TABLE[method].aligns:
                moved = combine(spec, pair.parents, assignment, weights=[0.0, 1.0])
                differ = differing(whole, assignment)
                found[method, name] = {**scores(moved), "differ": differ}
    return found


def matched(
    pair: Pair, spec: PermutationSpec, moments: Mapping[str, Moments], method: str
) -> Assignment:
    """Match; a method that takes alpha by that of the best training accuracy."""
    setup, parents = pair.setup, pair.parents
    key = setup.match_key
    matched_at = matcher(spec, parents, moments, method=method, key=key)
    if not TABLE[method].blends:
        return matched_at(0.5).assignment  # which says nothing here

    def accuracy(assignment: Assignment) -> float:
        merged = combine(spec, parents, assignment)
        return scores_of(setup, setup.search, merged)["accuracy"]

    alphas = setup.experiment.alphas
    assignment_at = lambda alpha: matched_at(alpha).assignment
    return search_alpha(assignment_at, accuracy, alphas).candidate


def merges(
    pair: Pair,
    whole: PermutationSpec,
    spec: PermutationSpec,
    assignment: Assignment,
    repairs: Sequence[str],
) -> Iterator[tuple[str, PyTree]]:
    """Yield a merged network, repaired in every way."""
    for repair in repairs:
        parents, batches = pair.parents, pair.setup.calibration
        merged = repaired(whole, spec, pair.apply, parents, assignment, repair, batches)
        yield repair, merged


def scores_of(setup: SeedSetup, split: Split, variables: PyTree) -> Numbers:
    """Return accuracy and mean cross-entropy, over the classes of both parents."""
    apply = models.apply_fn(setup.experiment.network)
    classes = np.array(classes_of(setup))
    vectors = setup.vectors[classes]
    parts = [_cosines(apply, variables, x, vectors) for x in batches(split, 256)]
    logits = setup.experiment.training.logit_scale * jnp.concatenate(parts)
    targets = np.searchsorted(classes, split.classes)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    accuracy = np.mean(np.asarray(logits).argmax(axis=1) == targets)
    return {"accuracy": float(accuracy), "loss": float(losses.mean())}


@functools.partial(jax.jit, static_argnums=0)
def _cosines(
    apply: ApplyFn, variables: PyTree, images: jax.Array, vectors: jax.Array
) -> jax.Array:
    return cosines(apply(variables, images), vectors)


def merges_table(runs: Sequence[Measured]) -> str:
    """Write what was measured of the parents and the merged networks."""
    header = ["network"]
    for name in ("accuracy", "loss"):
        header += [f"{name}, whole", "over average", f"{name}, apart", "whole - apart"]
    rows = [["parents", *_compared(runs, ("parents",))]]
    for key in runs[0]:
        if len(key) == 3 and key[2] == "whole":
            method, repair, _ = key
            name = method if repair == "none" else f"{method} + {repair}"
            rows.append([name, *_compared(runs, key)])
    return table(header, rows)


def _compared(runs: Sequence[Measured], key: tuple[str, ...]) -> list[str]:
    """Write a row: by accuracy and by loss, a network and how it is to others."""
    cells = []
    for name in ("accuracy", "loss"):
        own = np.array([run[key][name] for run in runs])
        cells.append(with_error(own))
        if key[0] in ("parents", "average"):
            cells += ["", "", ""]
            continue
        average, apart = (
            np.array([run[k][name] for run in runs])
            for k in (("average", *key[1:]), (*key[:2], "apart"))
        )
        cells += [with_error(own - average, "+"), with_error(apart)]
        cells.append(with_error(own - apart, "+"))
    return cells


def moved_table(runs: Sequence[Measured]) -> str:
    """Write what matching alone, nothing averaged, makes of the second parent."""
    columns = {"differ": "heads that differ", "accuracy": "accuracy", "loss": "loss"}
    rows = []
    for key in runs[0]:
        if len(key) == 2 or key == ("second",):
            name = "as trained" if key == ("second",) else f"{key[0]}, {key[1]}"
            cells = [with_error([run[key][c] for run in runs]) for c in columns]
            rows.append([name, *cells])
    return table(["second parent", *columns.values()], rows)


def with_error(values: Sequence[float] | np.ndarray, sign: str = "") -> str:
    """Write the mean of values, with its standard error if there are several."""
    mean = f"{np.mean(values):{sign}.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
