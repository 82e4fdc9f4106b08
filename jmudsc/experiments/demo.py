"""Demo: train pairs of networks apart on real digits and merge each pair every way.

One network learns the digits 0-4, the other 5-9, from different initializations. The
merged network has to tell all ten apart.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jaxtyping import PyTree

from jmudsc.checkpoints.save import save_variables
from jmudsc.derivation.check_spec import check_spec
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.experiments import models
from jmudsc.experiments.accuracy import score_ensemble, score_network, Scores
from jmudsc.experiments.datasets import batches, digits, only, Split
from jmudsc.experiments.training import (
    class_vectors,
    DEMO_MLP,
    DEMO_RESNET20,
    telling_apart,
    train,
)
from jmudsc.matching.activation_statistics import collect
from jmudsc.matching.coordinate_descent import match
from jmudsc.matching.methods import METHODS, TABLE
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.report import report
from jmudsc.merging.result import MergeResult
from jmudsc.merging.save_result import save
from jmudsc.paths import did_you_mean
from jmudsc.progress import prefixed, Progress
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.import_path import ImportPath
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import Source
from jmudsc.repairs.batch_stats import reset_batch_stats
from jmudsc.tables import mean_and_std, table
from jmudsc.types import ApplyFn, UpdateFn

TASKS = ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))
SETUPS = {"mlp": DEMO_MLP, "resnet20": DEMO_RESNET20}
PARENTS = ("parent 0-4", "parent 5-9")
ALPHA = 0.5
_BATCH = 256


def apply_fn(network: str) -> ApplyFn:
    """Return the evaluation-mode function of a demo network, for recipes."""
    return models.apply_fn(SETUPS[network].model)


def update_fn(network: str) -> UpdateFn:
    """Return the function that updates running statistics, for recipes."""
    return models.update_fn(SETUPS[network].model)


def calibration() -> list:
    """Return the training images of both tasks in batches, for recipes."""
    return batches(digits()[0], _BATCH)


def run_demo(
    out: Path,
    networks: Sequence[str] = tuple(SETUPS),
    seeds: Iterable[int] = (0,),
    progress: Progress | None = None,
) -> str:
    """Train, merge, evaluate and save.

    Args:
        out: a directory to make: per network and seed the parents and merged networks
            as checkpoints and a recipe that repeats the last merge.
        networks: of `mlp` and `resnet20`.
        seeds: one pair is trained for each.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The report, in Markdown; it is in `out/report.md` too.

    Raises:
        FileExistsError: if `out` exists.
        ValueError: if there is no such network.
    """
    _check_networks(networks)
    if out.exists():
        raise FileExistsError(
            f"{out}: expected a new directory, got one that exists. Remove it or "
            "choose another with --out."
        )
    out.mkdir(parents=True)
    sections = []
    for network in networks:
        scores: dict[str, list[Scores]] = {}
        for seed in seeds:
            folder = out / network / f"seed-{seed}"
            for name, score in _pair(network, seed, folder, progress).items():
                scores.setdefault(name, []).append(score)
        sections.append(f"## {network}\n\n{_scores_table(scores)}\n")
    text = "\n".join([_intro(list(seeds)), *sections])
    (out / "report.md").write_text(text)
    return text


@dataclass(frozen=True)
class Pair:
    """Two networks trained apart, with what it takes to merge and to score them.

    Attributes:
        parents: the variables of the two networks.
        vectors: the unit vector of every class.
        test: test images of all ten digits.
        check_key: a PRNG key for checking the spec.
        match_key: a PRNG key for matching.
    """

    parents: list[PyTree]
    vectors: jax.Array
    test: Split
    check_key: jax.Array
    match_key: jax.Array


def train_pair(network: str, seed: int, progress: Progress | None = None) -> Pair:
    """Train one network on each task.

    Args:
        network: `mlp` or `resnet20`.
        seed: decides everything random.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The pair.
    """
    key = jax.random.fold_in(jax.random.key(seed), sorted(SETUPS).index(network))
    vector_key, check_key, match_key, *parent_keys = jax.random.split(key, 5)
    setup = SETUPS[network]
    training, test = digits()
    vectors = class_vectors(vector_key, 10, setup.model.outputs)
    parents = []
    for task, parent_key in zip(TASKS, parent_keys, strict=True):
        init_key, train_key = jax.random.split(parent_key)
        scale = setup.config.logit_scale
        stage = f"{network}: training on {task[0]}-{task[-1]} "
        variables = train(
            setup,
            models.init(setup.model, init_key, training.images.shape[1:]),
            telling_apart(task, only(training, task), vectors, scale),
            key=train_key,
            progress=prefixed(progress, stage),
        )
        parents.append(variables)
    return Pair(parents, vectors, test, check_key, match_key)


def _check_networks(networks: Sequence[str]) -> None:
    unknown = [name for name in networks if name not in SETUPS]
    if unknown:
        raise ValueError(
            f"demo: expected networks of {', '.join(SETUPS)}, got "
            f"{', '.join(unknown)}{did_you_mean(unknown[0], SETUPS) or '.'}"
        )


def _pair(
    network: str, seed: int, folder: Path, progress: Progress | None
) -> dict[str, Scores]:
    """Train, merge and save one pair; return the scores of all networks."""
    pair = train_pair(network, seed, progress)
    apply = apply_fn(network)
    for name, variables in zip(PARENTS, pair.parents, strict=True):
        save_variables(folder / name.replace(" ", "-"), variables)
    score = functools.partial(
        score_network, apply, split=pair.test, vectors=pair.vectors, tasks=TASKS
    )
    scores = {n: score(v) for n, v in zip(PARENTS, pair.parents, strict=True)}
    scores["ensemble"] = score_ensemble(
        apply, pair.parents, pair.test, pair.vectors, TASKS
    )
    has_statistics = False
    for result in _merges(network, pair, progress):
        method = result.recipe["method"]
        scores[method] = score(result.variables)
        save(folder / method, result, notes={"report.md": report(result)})
        has_statistics = bool(result.spec.statistics)
    (folder / "recipe.yaml").write_text(_recipe(network, seed, has_statistics))
    return scores


def _merges(
    network: str, pair: Pair, progress: Progress | None
) -> Iterator[MergeResult]:
    """Merge by every method, on one spec and one pass of statistics."""
    apply, calibrating, parents = apply_fn(network), calibration(), pair.parents
    spec = infer_spec(apply, parents[0], calibrating[0])
    check_spec(spec, apply, parents[0], calibrating[0], key=pair.check_key)
    moments = collect(spec, apply, parents, calibrating)
    for number, method in enumerate(METHODS):
        if progress:
            progress(f"{network}: merging", number, len(METHODS))
        found = match(
            spec, parents, moments, method=method, alpha=ALPHA, key=pair.match_key
        )
        merged = TABLE[method].combine(spec, parents, found.assignment, None)
        if spec.statistics:
            merged = reset_batch_stats(update_fn(network), merged, calibrating)
        recipe = {"method": method, "alpha": ALPHA, "network": network}
        yield MergeResult(merged, spec, found.assignment, found.history, recipe)


def _recipe(network: str, seed: int, has_statistics: bool) -> str:
    """Write the recipe by which `jmudsc merge` merges the two parents again."""
    update = ImportPath("jmudsc.experiments.demo:update_fn", {"network": network})
    return dump_recipe(
        Recipe(
            models=tuple(Source(name.replace(" ", "-")) for name in PARENTS),
            apply_fn=ImportPath(
                "jmudsc.experiments.demo:apply_fn", {"network": network}
            ),
            functions={"update_fn": update} if has_statistics else {},
            batches=ImportPath("jmudsc.experiments.demo:calibration", {}),
            options=MergeOptions(alpha=ALPHA),
            seed=seed,
            output="merged",
        )
    )


def _scores_table(scores: Mapping[str, Sequence[Scores]]) -> str:
    header = ["network", "all ten", "digits 0-4", "digits 5-9", "mean of both"]
    rows = []
    for name, runs in scores.items():
        columns = [
            [run.joint for run in runs],
            *[[run.per_task[i] for run in runs] for i in range(len(TASKS))],
            [run.mean for run in runs],
        ]
        rows.append([name, *map(mean_and_std, columns)])
    return table(header, rows)


def _intro(seeds: Sequence[int]) -> str:
    count = f"{len(seeds)} pairs" if len(seeds) > 1 else "one pair"
    return (
        f"# Demo\n\nTest accuracy on scikit-learn's digits, {count} of parents per "
        f"network (seeds {', '.join(map(str, seeds))}). All ten: the right digit among "
        "ten; digits 0-4 and 5-9: among the five of the task. alpha is "
        f"{ALPHA:g} for mudsc.\n"
    )
