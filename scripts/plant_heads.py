"""Does pairing heads of q/k and of v apart find a pairing that is known?

    python scripts/plant_heads.py --seeds 0 1 2

The second network is the first of `compare_heads` on all classes, its units permuted at
random and normal noise added to every leaf, in units of the leaf's own standard
deviation. Both are matched by mudsc-align, alpha 0.5, with whole heads and with heads
apart. Prints how many heads are sent elsewhere than they came from, on how many the two
pairings of heads apart differ, and test accuracy and loss of the merged networks: means
over the seeds with standard errors.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from compare_heads import (
    CONFIG,
    Numbers,
    pair_of,
    ROOT,
    scores_of,
    setups_of,
    with_error,
)
from heads_apart import both_specs, differing, value_heads
from jaxtyping import PyTree

from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.experiments import models
from jmudsc.experiments.seed_setup import SeedSetup
from jmudsc.matching.activation_statistics import collect
from jmudsc.matching.coordinate_descent import match
from jmudsc.reordering.combine import combine
from jmudsc.reordering.permute import permute, random_permutations
from jmudsc.tables import table

NOISES = (0.0, 1.0, 2.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noises", type=float, nargs="+", default=NOISES)
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    start, runs = time.perf_counter(), []
    for seed, setup in setups_of(given.config, given.seeds, given.data_dir).items():
        folder = given.runs / given.config.stem / f"seed-{seed}"
        first = pair_of(setup, "same", folder).parents[0]
        runs.append([planted(setup, first, noise) for noise in given.noises])
    rows = [
        [f"{noise:g}", *(with_error([run[n][c] for run in runs]) for c in runs[0][n])]
        for n, noise in enumerate(given.noises)
    ]
    print(table(["noise", *runs[0][0]], rows))
    print(f"\n{time.perf_counter() - start:.0f} s in all")


def planted(setup: SeedSetup, first: PyTree, noise: float) -> Numbers:
    """Match a network with itself, permuted and with noise, by both specs."""
    apply, data = models.apply_fn(setup.experiment.network), setup.calibration
    whole = infer_spec(apply, first, data[0])
    specs = both_specs(whole, apply, first, data[0], setup.check_key)
    noise_key, plant_key = jax.random.split(setup.check_key)
    true = random_permutations(whole, plant_key)
    second = permute(whole, noisy(first, noise, noise_key), true)
    parents = [first, second]
    moments = collect(whole, apply, parents, data)
    scores = scores_of(setup, setup.test, second)
    found = {"accuracy of second": scores["accuracy"]}
    for name, spec in specs.items():
        key = setup.match_key
        matched = match(spec, parents, moments, method="mudsc-align", key=key)
        labels = [
            (head, label)
            for head, values in value_heads(whole).items()
            for label in (head, values)
            if label in spec.labels
        ]
        wrong = [matched.assignment[label][1] != true[head] for head, label in labels]
        found[f"wrong, {name}"] = float(np.mean(wrong))
        if name == "apart":
            found["differ"] = differing(whole, matched.assignment)
        merged = combine(spec, parents, matched.assignment)
        scores = scores_of(setup, setup.test, merged)
        found |= {f"{what}, {name}": value for what, value in scores.items()}
    return found


def noisy(variables: PyTree, noise: float, key: jax.Array) -> PyTree:
    """Add normal noise to every leaf, in units of the leaf's own deviation."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(key, len(leaves))
    new = [
        leaf + noise * jnp.std(leaf) * jax.random.normal(k, leaf.shape)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, new)


if __name__ == "__main__":
    main()
