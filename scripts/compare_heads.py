"""Compare pairing whole heads with pairing the heads of q/k and of v apart.

    jmudsc experiment configs/digits-vit.yaml --seeds 0 1 2
    python scripts/compare_heads.py --seeds 0 1 2

The derived spec has one label for the heads of an attention, in which the channels of
queries and keys and those of values are nested. Paired apart, by two matchings that
need not agree, the scores of one head meet the values of another: such a spec is no
symmetry. This matches the networks that the experiment trained by both, alpha chosen on
training images, and prints joint test accuracies.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax

from jmudsc import models
from jmudsc.axes import Axis
from jmudsc.balance import search_alpha
from jmudsc.check import check_spec
from jmudsc.checkpoints import load
from jmudsc.combine import combine
from jmudsc.datasets import load_splits
from jmudsc.derive import infer_spec
from jmudsc.evaluate import evaluate
from jmudsc.experiment_config import Experiment, read_experiment
from jmudsc.ground import Ground, lay_ground
from jmudsc.match import match, matcher
from jmudsc.moments import collect
from jmudsc.report import mean_and_deviation, table
from jmudsc.spec import Label, PermutationSpec, Site

ROOT = Path(__file__).parent.parent
METHODS = ("weight-align", "activation-align", "mudsc-align", "mudsc-zip")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/digits-vit.yaml")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    experiment = read_experiment(given.config)
    if not isinstance(experiment, Experiment):
        raise SystemExit(f"{given.config}: parts of classes are needed, not tasks.")
    splits = load_splits(
        experiment.dataset,
        experiment.train_split,
        experiment.test_split,
        given.data_dir,
    )
    found: dict[str, dict[str, list[float]]] = {}
    for seed in given.seeds:
        ground = lay_ground(experiment, seed, *splits)
        folder = given.runs / given.config.stem / f"seed-{seed}"
        parents = [load(folder / f"parent-{chr(65 + n)}") for n in range(2)]
        for row, scores in joint_of(experiment, ground, parents).items():
            for column, joint in scores.items():
                found.setdefault(row, {}).setdefault(column, []).append(joint)
    columns = list(found[METHODS[0]])
    rows = [
        [row, *(mean_and_deviation(scores[c]) if c in scores else "-" for c in columns)]
        for row, scores in found.items()
    ]
    print(table(["method", *columns], rows))


def joint_of(
    experiment: Experiment, ground: Ground, parents: list
) -> dict[str, dict[str, float]]:
    """Merge by all methods with both specs; return method -> spec -> accuracy."""
    apply = models.apply_fn(experiment.network)
    first = ground.calibration[0]
    together = infer_spec(apply, parents[0], first)
    apart = heads_apart(together)
    check_spec(together, apply, parents[0], first, key=ground.check_key)
    assert not is_symmetry(apart, apply, parents[0], first, ground.check_key)
    moments = collect(together, apply, parents, ground.calibration)

    def joint(variables: dict, search: bool = False) -> float:
        split = ground.search if search else ground.test
        scores = evaluate(apply, variables, split, ground.vectors, ground.tasks)
        return scores.joint

    stay = match(together, parents, None, method="average", key=ground.match_key)
    average = combine(together, parents, stay.assignment)
    found = {"average": {"heads whole": joint(average)}}
    for method in METHODS:
        found[method] = {}
        for name, spec in {"heads whole": together, "apart": apart}.items():
            matched_at = matcher(
                spec, parents, moments, method=method, key=ground.match_key
            )
            merged_of = lambda m, spec=spec: combine(spec, parents, m.assignment)
            alphas = experiment.alphas if method.startswith("mudsc-") else (0.5,)
            best = search_alpha(
                matched_at,
                lambda m, merged_of=merged_of: joint(merged_of(m), search=True),
                alphas,
            ).candidate
            merged = merged_of(best)
            found[method][name] = joint(merged)
    return found


def is_symmetry(spec: PermutationSpec, apply, variables, batch, key: jax.Array) -> bool:
    """Whether permutations by a spec leave the outputs as they are."""
    try:
        check_spec(spec, apply, variables, batch, key=key)
    except ValueError:
        return False
    return True


def heads_apart(spec: PermutationSpec) -> PermutationSpec:
    """Give the values of every attention a label of heads of their own."""
    axes, labels = dict(spec.axes), dict(spec.labels)
    for name in spec.labels:
        nested = spec.children(name)
        if len(nested) < 2:
            continue
        for channels in nested[1:]:
            apart = f"{name}_{channels}"
            leaves = {site.path for site in labels[channels].sites}
            labels[apart] = dataclasses.replace(labels[name], sites=())
            labels[channels] = dataclasses.replace(labels[channels], parents=(apart,))
            renamed = {label: label for label in labels} | {name: apart}
            for path in leaves:
                axes[path] = tuple(axis.renamed(renamed) for axis in axes[path])
    return dataclasses.replace(spec, axes=axes, labels=_with_sites(axes, labels))


def _with_sites(
    axes: Mapping[str, tuple[Axis, ...]], labels: Mapping[str, Label]
) -> dict[str, Label]:
    sites: dict[str, list[Site]] = {name: [] for name in labels}
    for path, leaf in axes.items():
        for number, axis in enumerate(leaf):
            for name in dict.fromkeys(axis.labels()):
                sites[name].append(Site(path, number))
    return {
        name: dataclasses.replace(label, sites=tuple(sites[name]))
        for name, label in labels.items()
    }


if __name__ == "__main__":
    main()
