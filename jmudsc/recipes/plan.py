"""Plan: what a recipe would do, what it would take, and all that is wrong with it.

Checkpoints are asked for shapes and dtypes only, the model is traced on shapes, and no
check ends at the first error.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
from jaxtyping import PyTree

from jmudsc.batches import Chained, first_batch
from jmudsc.checkpoints.dtypes import abstract, check_savable
from jmudsc.checkpoints.formats import format_of
from jmudsc.checkpoints.load import open_variables
from jmudsc.derivation.program import trace
from jmudsc.derivation.taps import find_taps, Tap
from jmudsc.matching.coordinate_descent import uses_activations
from jmudsc.merging.alpha_search import ALPHAS, check_balance
from jmudsc.merging.memory_budget import fits, room, tree_bytes
from jmudsc.merging.merge import check_batches, reads_all
from jmudsc.merging.separate import check_carried, check_read, take_apart, trunks_of
from jmudsc.merging.trunk import trunk_fn
from jmudsc.paths import flatten
from jmudsc.progress import Progress, silent
from jmudsc.recipes.costs import Job, Stage, stages_of
from jmudsc.recipes.machine_speed import measure_rates, Rates
from jmudsc.recipes.merge import free_places, is_checked
from jmudsc.recipes.resolve import place, resolved, spec_by
from jmudsc.recipes.schema import parse_keys, Recipe, Reference, Source
from jmudsc.recipes.yaml_keys import read_yaml
from jmudsc.repairs.pipeline import check_finish, Finish
from jmudsc.spec.check_variables import differences
from jmudsc.spec.freeze import freeze
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn

Found = TypeVar("Found")


@dataclass(frozen=True)
class Model:
    """What a checkpoint says of itself.

    Attributes:
        path: as the recipe has it.
        kind: its format.
        shapes: of its variables, as they would be loaded.
    """

    path: str
    kind: str
    shapes: PyTree[jax.ShapeDtypeStruct]

    @property
    def nbytes(self) -> int:
        """Bytes of its variables."""
        return tree_bytes(self.shapes)


@dataclass(frozen=True)
class Plan:
    """What a recipe would do.

    Attributes:
        recipe: the recipe, with no models, or references to nothing, where those that
            it names are wrong.
        models: per model of the recipe what is stored; None where that is not to be
            read.
        batches: number of batches; None if that is not known.
        spec: the permutation spec, if it could be derived or read.
        stages: what is done, and what it takes; none where something else is wrong
            without which it cannot be told.
        rates: how fast the machine was found to be.
        streamed: whether the models have no room in memory and stay on disk.
        problems: everything that is wrong, each as `merge` would say it.
    """

    recipe: Recipe
    models: tuple[Model | None, ...] = ()
    batches: int | None = None
    spec: PermutationSpec | None = None
    stages: tuple[Stage, ...] = ()
    rates: Rates | None = None
    streamed: bool = False
    problems: tuple[str, ...] = ()


def plan_recipe(
    path: Path,
    *,
    overwrite: bool = False,
    memory: int | None = None,
    rates: Rates | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Find out what a recipe would do, without reading an array of a checkpoint.

    The recipe's functions are imported, and its first batch is made. What only arrays
    tell is not found: values that are not finite, damage, and whether a spec written by
    hand is a symmetry.

    Args:
        path: the recipe, a YAML file.
        overwrite: whether an earlier merge at its output may be replaced.
        memory: bytes that the models may take, as for `merge_recipe`.
        rates: how fast the machine is; measured if None.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The plan, with all that is wrong.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if it is no YAML mapping.
    """
    say = progress or silent
    values, wrong = parse_keys(read_yaml(path, "a recipe is needed."), str(path))
    problems = [f"{path}: {problem}" for problem in wrong]
    recipe = _recipe(values, path.absolute().parent)
    if recipe.output:
        _attempt(problems, free_places, recipe, overwrite)
    say("importing", 0, 1)
    named: dict[str, Any] = {}
    for key in ("apply_fn", "batches", "update_fn", "score"):
        if values.get(key) or (key == "batches" and _own_batches(recipe)):
            named |= _attempt(problems, _resolved, recipe, key) or {}
    _check_options(problems, recipe, "update_fn" in values, "score" in values)
    say("looking at checkpoints", 0, 1)
    models = tuple(_attempt(problems, _model, recipe, x) for x in recipe.models)
    variables = [model.shapes for model in models if model]
    whole = bool(models) and all(models)
    trunks = _trunks(problems, recipe, variables) if variables else None
    count, batch = _batches(problems, named.get("batches"), recipe.method)
    streamed = whole and not fits(variables, room() if memory is None else memory)
    spec, stages = None, []
    if "apply_fn" in named and batch is not None and models and models[0] and trunks:
        say("tracing the model", 0, 1)
        asked = recipe, named, variables, trunks, batch, count
        spec, job = _traced(problems, path, *asked)
        if job and whole:
            say("measuring the machine", 0, 1)
            rates = rates or measure_rates()
            stages = stages_of(_streamed(job, recipe) if streamed else job, rates)
    found = recipe, models, count, spec, tuple(stages), rates, streamed
    return Plan(*found, tuple(problems))


def _streamed(job: Job, recipe: Recipe) -> Job:
    """Return what is to be done where models have no room, as `merge` does it."""
    checked = is_checked(recipe)
    if reads_all(recipe.alpha, recipe.refit, recipe.repair, recipe.separate):
        return dataclasses.replace(job, checked=checked)
    return dataclasses.replace(job, streamed=True, checked=checked)


def _attempt(
    problems: list[str], call: Callable[..., Found], *args: Any
) -> Found | None:
    """Call a function, and add what it says is wrong to the problems."""
    try:
        return call(*args)
    except (ValueError, TypeError, OSError) as error:
        problems.append(str(error))
    except Exception as error:  # noqa: BLE001  (a recipe's own code may raise any)
        problems.append(f"{type(error).__name__}: {error}")
    return None


def _recipe(values: Mapping[str, Any], folder: Path) -> Recipe:
    """Return a recipe of the keys that are right."""
    nothing = Reference("")
    empty = {"models": (), "apply_fn": nothing, "output": ""}
    return Recipe(**{**empty, **values}, folder=folder)


def _own_batches(recipe: Recipe) -> bool:
    """Whether every model has batches of its own."""
    return bool(recipe.models) and all(source.batches for source in recipe.models)


def _resolved(recipe: Recipe, key: str) -> Mapping[str, Any]:
    """Import what a key names, and say which key it is if that fails in any way."""
    try:
        return resolved(recipe, (key,))
    except Exception as error:  # a recipe's own code may raise any
        if type(error) is ValueError:
            raise
        raise ValueError(
            f'recipe: "{key}" raises {error!r}, it must not; correct what it names.'
        ) from error


def _run(
    key: str, function: Callable[..., Any], models: Sequence[PyTree], batch: PyTree
) -> bool:
    """Run a function of the recipe on shapes, and say which it is if that fails."""
    try:
        for variables in models:
            jax.eval_shape(function, variables, batch)
    except Exception as error:  # likewise
        raise ValueError(
            f'recipe: "{key}" raises {error!r}, it must run on the variables and a '
            "batch; correct the function, or what it is given."
        ) from error
    return True


def _check_options(
    problems: list[str], recipe: Recipe, updated: bool, scored: bool
) -> None:
    balance = recipe.alpha, ALPHAS, recipe.method, scored
    _attempt(problems, check_balance, "recipe", *balance)
    update_fn = (lambda variables, batch: variables) if updated else None
    finish = Finish(update_fn, recipe.refit, ridge=recipe.ridge, repair=recipe.repair)
    _attempt(problems, check_finish, "recipe", finish, (), len(recipe.models))


def _model(recipe: Recipe, source: Source) -> Model:
    stored = open_variables(
        place(recipe, source.path),
        source.subtree,
        rename=dict(source.rename),
        separator=source.separator,
    )
    shapes = abstract(stored.where, stored.variables)
    if recipe.output:
        check_savable(shapes, format_of(recipe.output) or "orbax")
    return Model(source.path, stored.kind, shapes)


def _trunks(
    problems: list[str], recipe: Recipe, variables: Sequence[PyTree]
) -> list[PyTree] | None:
    """Return what is to be merged of each model; put down how they differ in it."""
    trunks: list[PyTree] | None = list(variables)
    if recipe.separate:
        separate = list(recipe.separate)
        trunks = _attempt(problems, trunks_of, "recipe", variables, separate)
    if trunks:
        problems += [f"models: {difference}" for difference in differences(trunks)]
    return trunks


def _batches(
    problems: list[str], batches: Any, method: str
) -> tuple[int | None, PyTree | None]:
    """Return how many batches there are, and the shapes of the first."""
    if batches is None:
        return None, None
    before = len(problems)
    _attempt(problems, check_batches, batches, method, None)
    if len(problems) > before:
        return None, None
    first = _attempt(problems, first_batch, batches)
    tasks = batches.tasks if isinstance(batches, Chained) else (batches,)
    counts = [len(task) for task in tasks if isinstance(task, Sized)]
    return sum(counts) if len(counts) == len(tasks) else None, first


def _traced(
    problems: list[str],
    path: Path,
    recipe: Recipe,
    named: Mapping[str, Any],
    variables: Sequence[PyTree],
    trunks: Sequence[PyTree],
    batch: PyTree,
    count: int | None,
) -> tuple[PermutationSpec | None, Job | None]:
    """Derive or read the spec, and find out what is to be done by it."""
    apply_fn = named["apply_fn"]
    traced = variables if recipe.separate else variables[:1]
    runs = _attempt(problems, _run, "apply_fn", apply_fn, traced, batch)
    if "update_fn" in named:
        _attempt(problems, _run, "update_fn", named["update_fn"], traced[:1], batch)
    if not runs:
        return None, None
    specs = [
        _attempt(problems, spec_by, path, recipe, apply_fn, [batch], model)
        for model in (traced if recipe.spec is None else traced[:1])
    ]
    if not all(specs):
        return None, None
    specs = [spec for spec in specs if spec]
    specs *= 1 if recipe.spec is None else len(traced)
    frozen = _attempt(problems, freeze, specs[0], recipe.frozen)
    specs = [frozen or specs[0], *specs[1:]]
    parts = _attempt(problems, take_apart, "recipe", specs, variables, trunks)
    if parts is None:
        return specs[0], None
    _attempt(problems, check_carried, "recipe", parts, recipe.method.endswith("-zip"))
    merged = flatten(trunks[0])
    read, of = apply_fn, variables[0]
    if recipe.separate:
        read, of = trunk_fn(apply_fn, variables[0], merged), merged
    taps = {}
    if uses_activations(recipe.method):
        taps = _attempt(problems, _taps, read, of, batch, parts.spec) or {}
        labels = [name for name, where in taps.items() if where]
        _attempt(problems, check_read, "recipe", parts, labels)
    program = trace(apply_fn, variables[0], batch)
    finish = [
        what
        for what, asked in (
            ("refit", recipe.refit),
            ("repair", recipe.repair == "rescale"),
            ("reset", recipe.update_fn and not recipe.repair),
        )
        if asked
    ]
    balances = len(ALPHAS) if isinstance(recipe.alpha, str) else 1
    job = Job(
        spec=parts.spec,
        models=variables,
        merged=merged,
        program=program,
        taps=taps,
        batches=count,
        method=recipe.method,
        balances=balances,
        finish=finish,
    )
    return parts.spec, job


def _taps(
    apply_fn: ApplyFn, variables: PyTree, batch: PyTree, spec: PermutationSpec
) -> dict[str, tuple[Tap, ...]]:
    return find_taps(trace(apply_fn, variables, batch), spec)
