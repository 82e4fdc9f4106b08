"""Merge recurrent networks that others trained: peptide binding of two molecules.

The package `mhcnuggets` holds one LSTM a molecule that says how strongly a peptide
binds to it. It is fetched from the package registry into `--cache`, and nothing of it
is kept elsewhere. Its license is the JHU Academic Software License, for research and
not for commerce: Copyright Johns Hopkins University 2015, all rights reserved. It is
from Shao et al., High-Throughput Prediction of MHC Class I and II Neoantigens with
MHCnuggets, Cancer Immunology Research 8(3), 2020,
doi:10.1158/2326-6066.CIR-19-0464.

Pairs are merged by mudsc-zip on random peptides of the length that is usual for each
molecule, or on half of those whose affinity was measured (which is not read), with what
each has for itself as `APART` says. Prints how well merged networks tell the peptides
that a parent calls binders (500 nM or less) from all others, as areas under the curve
(AUC) of first / second molecule; the same for the affinities that were measured; and
whether verdicts have the sign that test peptides give.

    python scripts/merge_peptides.py --cache ~/.cache/peptides
"""

import argparse
import csv
import io
import logging
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jmudsc
from jmudsc.tables import table

VERSION = "2.4.1"
# Molecules of class I, all trained on from one start: that of A02:01.
ONE_START = (
    ("HLA-A02:01", "HLA-B07:02"),
    ("HLA-A01:01", "HLA-B27:05"),
    ("HLA-A24:02", "HLA-B44:03"),
)
# Class I and class II, which have nothing in common.
TWO_STARTS = (
    ("HLA-A02:01", "HLA-DRB101:01"),
    ("HLA-B07:02", "HLA-DRB104:01"),
    ("HLA-A03:01", "HLA-DRB107:01"),
    ("HLA-B27:05", "HLA-DRB115:01"),
)
PAIRS = TWO_STARTS + ONE_START
APART: dict[str, tuple[str, ...]] = {
    "dense and head": ("dense/*", "head/*"),
    "nothing": (),
}
WAYS: dict[str, dict[str, Any]] = {
    "no refit": {},
    "last layer": {"refit": "least-squares", "only": ("head/*",)},
    "all layers": {"refit": "least-squares"},
    "best": {"method": "best"},
}
# Our name of a layer, that of Keras, and its leaves.
LAYERS = {
    "lstm": ("lstm_1", ("kernel", "recurrent_kernel", "bias")),
    "dense": ("dense_1", ("kernel", "bias")),
    "head": ("dense_2", ("kernel", "bias")),
}
SIZE = 200  # of a batch
Labeled = tuple[np.ndarray, np.ndarray]  # peptides, and what is known of each
LETTERS = "ACDEFGHIKLMNPQRSTVWYX"
# Amino acids of human proteins, percent (UniProt, in the order of LETTERS).
FREQUENCIES = (
    *(7.0, 2.3, 4.7, 7.1, 3.7, 6.6, 2.6, 4.3, 5.7, 10.0),
    *(2.1, 3.6, 6.3, 4.8, 5.6, 8.3, 5.4, 6.0, 1.2, 2.7),
)
LENGTHS = {"I": 9, "II": 15}  # of a peptide, by the class of the molecule
STRONGEST, BINDER = 50_000, 500  # nM, of a score of 0, and of the weakest binder
THRESHOLD = 1 - np.log(BINDER) / np.log(STRONGEST)


def fetch(cache: Path) -> zipfile.ZipFile:
    """Download the package, if it is not there."""
    name = f"mhcnuggets-{VERSION}-py2.py3-none-any.whl"
    if not (cache / name).exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d"]
        subprocess.run([*pip, str(cache), f"mhcnuggets=={VERSION}"], check=True)
    return zipfile.ZipFile(cache / name)


def read_network(package: zipfile.ZipFile, name: str) -> dict:
    """Read the Keras weights of a network, float32."""
    data = io.BytesIO(package.read(f"mhcnuggets/saves/{name}.h5"))
    with h5py.File(data) as file:
        return {
            ours: {
                leaf: jnp.asarray(np.asarray(file[f"{theirs}/{theirs}/{leaf}:0"]))
                for leaf in leaves
            }
            for ours, (theirs, leaves) in LAYERS.items()
        }


def hard_sigmoid(z: jax.Array) -> jax.Array:
    """Keras 2's gate: a line between 0 and 1."""
    return jnp.clip(0.2 * z + 0.5, 0, 1)


def apply_fn(variables: dict, x: jax.Array) -> jax.Array:
    """Run an LSTM over `[samples, steps, letters]`; return scores `[samples, 1]`."""
    lstm, dense, head = variables["lstm"], variables["dense"], variables["head"]
    units = lstm["recurrent_kernel"].shape[0]

    def step(state, x):
        h, c = state
        z = x @ lstm["kernel"] + h @ lstm["recurrent_kernel"] + lstm["bias"]
        i, f, g, o = jnp.split(z, 4, axis=-1)
        c = hard_sigmoid(f) * c + hard_sigmoid(i) * jnp.tanh(g)
        return (hard_sigmoid(o) * jnp.tanh(c), c), None

    start = jnp.zeros((len(x), units))
    (h, _), _ = lax.scan(step, (start, start), jnp.swapaxes(x, 0, 1))
    h = jnp.tanh(h @ dense["kernel"] + dense["bias"])
    return jax.nn.sigmoid(h @ head["kernel"] + head["bias"])


run = jax.jit(apply_fn)


def encoded(peptides: list[str]) -> np.ndarray:
    """Encode peptides of one length as the package does: 0.9 for the letter."""
    numbers = np.array([[LETTERS.index(letter) for letter in p] for p in peptides])
    return np.where(np.eye(21)[numbers] > 0, 0.9, 0.1 / 20).astype(np.float32)


def check_equations(package: zipfile.ZipFile) -> None:
    """Check the network against the predictions that the package holds, in nM."""
    text = package.read("mhcnuggets/saves/test/HLA-A01:01_test_model.predictions")
    rows = list(csv.DictReader(io.StringIO(text.decode())))
    network = read_network(package, "test/HLA-A01:01_test_model")
    scores = run(network, encoded([row["peptide"] for row in rows]))[:, 0]
    told = [float(row["ic50"]) for row in rows]
    np.testing.assert_allclose(STRONGEST ** (1 - scores), told, rtol=1e-4)


def drawn(seed: int, count: int, length: int) -> np.ndarray:
    """Draw different random peptides, of letters as frequent as in human proteins."""
    share = np.array(FREQUENCIES) / sum(FREQUENCIES)
    letters = np.random.default_rng(seed).choice(
        20, (count * 11 // 10, length), p=share
    )
    words = dict.fromkeys("".join(LETTERS[n] for n in row) for row in letters)
    return encoded(list(words)[:count])


def measured(package: zipfile.ZipFile, molecule: str, of: str) -> Labeled:
    """Read which peptides were measured to bind to a molecule of a class."""
    path = f"mhcnuggets/data/production/mhc{of}/curated_training_data.csv"
    lines = io.TextIOWrapper(io.BytesIO(package.read(path)), errors="replace")
    known = {
        row["peptide"]: float(row["IC50(nM)"]) <= BINDER
        for row in csv.DictReader(lines)
        if row["mhc"].replace("*", "") == molecule
        and len(row["peptide"]) == LENGTHS[of]
        and set(row["peptide"]) <= set(LETTERS)
    }
    return encoded(list(known)), np.array(list(known.values()))


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the chance that a positive has the larger score; ties count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    p, n = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * n))


@dataclass(frozen=True)
class Task:
    """A molecule.

    Attributes:
        network: the parent that was trained for it.
        batches: peptides to merge on.
        test: others, and what the parent says of them.
        measured: peptides, and whether they were measured to bind.
    """

    network: dict
    batches: list[np.ndarray]
    test: Labeled
    measured: Labeled

    def follows(self, network: dict) -> float:
        """Return the AUC of a network for what the parent calls binders."""
        x, scores = self.test
        return auc(np.asarray(run(network, x))[:, 0], scores >= THRESHOLD)

    def binds(self, network: dict) -> float:
        """Return the AUC of a network for what was measured to bind."""
        x, binders = self.measured
        return auc(np.asarray(run(network, x))[:, 0], binders)


def task_of(package, molecule: str, seed: int, args) -> Task:
    """Read a network and its peptides, none to test on among those to merge on."""
    of = "II" if molecule.startswith("HLA-D") else "I"
    network = read_network(package, f"production/{molecule}_BA")
    known, binders = measured(package, molecule, of)
    peptides = drawn(seed, args.peptides + args.tests, LENGTHS[of])
    test = peptides[args.peptides :]
    peptides = peptides[: args.peptides]
    if args.on == "measured":
        order = np.random.default_rng(seed).permutation(len(known))
        half = np.split(order, [len(order) // 2])
        peptides, known, binders = known[half[0]], known[half[1]], binders[half[1]]
        peptides = peptides[: min(len(peptides) // SIZE * SIZE, args.peptides)]
    said = np.asarray(run(network, test))[:, 0]
    batches = np.split(peptides, len(peptides) // SIZE)
    return Task(network, batches, (test, said), (known, binders))


def alike(tasks: list[Task]) -> float:
    """Return how much the recurrent kernels of two networks correlate, unit by unit."""
    kernels = [task.network["lstm"]["recurrent_kernel"] for task in tasks]
    return float(np.corrcoef([np.ravel(kernel) for kernel in kernels])[0, 1])


def margin(tasks: list[Task], networks: list[dict], apart: tuple[str, ...]) -> float:
    """Return by how much mean AUC is above that of the best parent, or of its trunk."""
    own = {pattern.removesuffix("/*") for pattern in apart}
    parents = [
        [
            {
                layer: (task if layer in own else kept).network[layer]
                for layer in kept.network
            }
            for task in tasks
        ]
        for kept in tasks
    ]
    merged, *others = (
        np.mean([task.follows(n) for task, n in zip(tasks, each, strict=True)])
        for each in [networks, *parents]
    )
    return float(merged - max(others))


def merged_every_way(tasks: list[Task], apart: tuple[str, ...]) -> dict:
    """Merge a pair in every way: the networks, and the result."""
    batches = [batch for task in tasks for batch in task.batches]
    lengths = {task.batches[0].shape[1] for task in tasks}
    # Peptides of one length may be of either molecule.
    owners = None
    if len(lengths) > 1:
        owners = [n for n, task in enumerate(tasks) for _ in task.batches]
    found = {}
    for way, options in WAYS.items():
        result = jmudsc.merge(
            apply_fn,
            [task.network for task in tasks],
            batches,
            key=jax.random.key(0),
            separate=apart,
            owners=owners,
            **{"method": "mudsc-zip", **options},
        )
        found[way] = list(result.networks or [result.variables] * 2), result
    return found


def pair_of(figure, tasks: list[Task], networks: list[dict]) -> str:
    """Format a figure of the networks for both molecules."""
    both = zip(tasks, networks, strict=True)
    return " / ".join(f"{figure(task, network):.3f}" for task, network in both)


def described(tasks: list[Task]) -> str:
    """Say how alike the parents are, and what there is to test on."""
    binders = " / ".join(str((task.test[1] >= THRESHOLD).sum()) for task in tasks)
    known = " / ".join(str(len(task.measured[1])) for task in tasks)
    return (
        f"recurrent kernels correlate by {alike(tasks):.2f}, {binders} binders among "
        f"the test peptides, {known} measured"
    )


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--peptides", type=int, default=4000, help="of each molecule")
    parser.add_argument("--tests", type=int, default=20_000, help="of each molecule")
    parser.add_argument("--on", choices=["random", "measured"], default="random")
    parser.add_argument("--pairs", type=int, nargs="+", default=range(len(PAIRS)))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    package = fetch(args.cache.expanduser())
    check_equations(package)
    follow, bind, verdicts = [], [], []
    for pair in [PAIRS[number] for number in args.pairs]:
        tasks = [
            task_of(package, molecule, seed, args) for seed, molecule in enumerate(pair)
        ]
        told = " + ".join(name.removeprefix("HLA-") for name in pair)
        print(f"{told}: {described(tasks)}", flush=True)
        for name, apart in APART.items():
            if not apart and pair in ONE_START:
                continue  # nothing tells the molecules apart
            found = merged_every_way(tasks, apart)
            networks = [each for each, _ in found.values()]
            own = [task.network for task in tasks]
            aucs = [pair_of(Task.follows, tasks, each) for each in networks]
            measures = [pair_of(Task.binds, tasks, each) for each in [own, *networks]]
            follow.append([told, name, *aucs, found["best"][1].recipe["chosen"]])
            bind.append([told, name, *measures])
            for way, (each, result) in found.items():
                signs = result.verdict.margin, margin(tasks, each, apart)
                verdicts.append([told, name, way, result.verdict.answer, *signs])
            print(follow[-1], bind[-1], *verdicts[-4:], sep="\n", file=sys.stderr)
            sys.stderr.flush()
    ways = list(WAYS)
    print(table(["pair", "apart", *ways, "chosen"], follow))
    print(table(["pair", "apart", "parents", *ways], bind))
    for row in verdicts:
        print(*row[:4], *(f"{value:+.3f}" for value in row[4:]), sep=", ")
    same = sum((row[4] > 0) == (row[5] > 0) for row in verdicts)
    print(f"verdict and test peptides agree in {same} of {len(verdicts)} merges")


if __name__ == "__main__":
    main()
