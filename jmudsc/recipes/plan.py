"""Plan: what a recipe would do, what it would take, and all that is wrong with it.

Checkpoints are asked for shapes and dtypes only, the model is traced on shapes, and no
check ends at the first error.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.batches import Chained, first_batch
from jmudsc.checkpoints.dtypes import abstract, check_savable
from jmudsc.checkpoints.formats import format_of
from jmudsc.derivation.explain_failure import explain_failure
from jmudsc.derivation.program import trace
from jmudsc.derivation.taps import find_taps, Tap
from jmudsc.merging.inputs import check_batches, Inputs, per_model
from jmudsc.merging.memory_budget import fits, room, tree_bytes
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import prepare, Prepared
from jmudsc.merging.separate import check_carried, check_read, trunks_of
from jmudsc.progress import Progress, silent
from jmudsc.recipes.costs import Job, Stage, stages_of
from jmudsc.recipes.machine_speed import measure_rates, Rates
from jmudsc.recipes.merge import free_places, is_checked
from jmudsc.recipes.reader import parse_keys
from jmudsc.recipes.resolve import open_model, resolved, spec_by
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import Source
from jmudsc.recipes.yaml_keys import read_yaml
from jmudsc.spec.check_variables import differences
from jmudsc.spec.permutation_spec import PermutationSpec


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
        recipe: the recipe, with no models, or import paths to nothing, where those that
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


@dataclass(frozen=True)
class _Trial:
    """What a merge is tried with, on shapes, to find what is wrong.

    Attributes:
        models: number of a model of the recipe -> the shapes of its variables: of those
            that can be read and are like the first.
        functions: key -> the function of every model of the recipe.
        batch: the first.
        options: of the merge.
    """

    models: Mapping[int, PyTree]
    functions: Mapping[str, Sequence[Any]]
    batch: PyTree
    options: MergeOptions


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
    recipe, wrong = parse_keys(read_yaml(path, "a recipe"), str(path))
    recipe = dataclasses.replace(recipe, folder=path.absolute().parent)
    problems = [f"{path}: {problem}" for problem in wrong]
    if recipe.output:
        with _noting(problems):
            free_places(recipe, overwrite)
    say("importing", 0, 1)
    named = _named(problems, recipe)
    options = _options(problems, recipe)
    functions = _functions(problems, recipe, named)
    say("looking at checkpoints", 0, 1)
    models = tuple(_model(problems, recipe, source) for source in recipe.models)
    alike = _alike(problems, recipe, models)
    count, batch = _batches(problems, named.get("batches"), options)
    trial = _Trial(alike, functions, batch, options)
    plan = Plan(recipe, models, count)
    shapes = [model.shapes for model in models if model]
    whole = bool(models) and all(models)
    if whole and not fits(shapes, room() if memory is None else memory):
        plan = dataclasses.replace(plan, streamed=True)
    if 0 in alike and batch is not None and "apply_fn" in functions:
        say("tracing the model", 0, 1)
        runs = _runs(problems, trial)
        prepared = _prepared(problems, path, recipe, trial) if runs else None
        if prepared:
            plan = dataclasses.replace(plan, spec=prepared.spec)
            job = _job(problems, prepared, batch, plan)
            if len(alike) == len(models):
                say("measuring the machine", 0, 1)
                rates = rates or measure_rates()
                stages = tuple(stages_of(job, rates))
                plan = dataclasses.replace(plan, stages=stages, rates=rates)
    return dataclasses.replace(plan, problems=tuple(problems))


@contextlib.contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """Add what a block says is wrong to the problems, and go on after it."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        problems.append(str(error))
    except Exception as error:  # noqa: BLE001  (a recipe's own code may raise any)
        problems.append(f"{type(error).__name__}: {error}")


def _named(problems: list[str], recipe: Recipe) -> dict[str, Any]:
    """Import what can be imported of what a recipe names."""
    given = [key for key, path in recipe.import_paths.items() if path.name]
    if recipe.models and all(source.batches for source in recipe.models):
        given.append("batches")
    named: dict[str, Any] = {}
    for key in ("apply_fn", "batches", *recipe.functions):
        if key in given:
            with _noting(problems):
                named |= _resolved(recipe, key)
    return named


def _resolved(recipe: Recipe, key: str) -> Mapping[str, Any]:
    """Import what a key names, and say which key it is if that fails in any way."""
    try:
        return resolved(recipe, (key,))
    except Exception as error:  # a recipe's own code may raise any
        if type(error) is ValueError:
            raise
        raise ValueError(
            f"recipe: {key}: expected an import path that can be followed, got "
            f"{error!r}. Correct what it names."
        ) from error


def _options(problems: list[str], recipe: Recipe) -> MergeOptions:
    """Return the options of a recipe; note how they contradict each other.

    In the place of its functions are some that do nothing: these may be wrong.
    """
    functions = dict.fromkeys(recipe.functions, lambda *_: None)
    options = dataclasses.replace(recipe.options, **functions)
    problems += [f"recipe: {problem}" for problem in options.problems()]
    return options


def _functions(
    problems: list[str], recipe: Recipe, named: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Return the functions that can be run, one for each model."""
    count, separate = len(recipe.models), recipe.options.separate
    functions = {}
    for key in ("apply_fn", "update_fn"):
        if key in named:
            with _noting(problems):
                functions[key] = per_model("recipe", key, named[key], count, separate)
    return functions


def _model(problems: list[str], recipe: Recipe, source: Source) -> Model | None:
    """Look at a checkpoint, and whether what is in it could be saved."""
    with _noting(problems):
        stored = open_model(recipe, source)
        shapes = abstract(stored.where, stored.variables)
        if recipe.output:
            check_savable(shapes, format_of(recipe.output))
        return Model(source.path, stored.format.name, shapes)
    return None


def _alike(
    problems: list[str], recipe: Recipe, models: Sequence[Model | None]
) -> dict[int, PyTree]:
    """Note how models differ in what is merged; return those like the first."""
    known = {n: model.shapes for n, model in enumerate(models) if model}
    trunks: Sequence[PyTree] = list(known.values())
    if known and recipe.options.separate:
        trunks = []
        with _noting(problems):
            separate = list(recipe.options.separate)
            trunks = trunks_of("recipe", list(known.values()), separate)
    if trunks:
        problems += [f"models: {difference}" for difference in differences(trunks)]
    return {
        number: known[number]
        for number, trunk in zip(known, trunks, strict=False)
        if not differences([trunks[0], trunk])
    }


def _batches(
    problems: list[str], batches: Any, options: MergeOptions
) -> tuple[int | None, PyTree | None]:
    """Return how many batches there are, and the first."""
    if batches is None:
        return None, None
    with _noting(problems):
        check_batches("recipe", batches, options)
        tasks = batches.tasks if isinstance(batches, Chained) else (batches,)
        counts = [len(task) for task in tasks if isinstance(task, Sized)]
        count = sum(counts) if len(counts) == len(tasks) else None
        return count, first_batch("recipe", batches)
    return None, None


def _runs(problems: list[str], trial: _Trial) -> bool:
    """Note which functions do not run on shapes; return whether apply_fn does."""
    runs = False
    shapes = trial.models if trial.options.separate else {0: trial.models[0]}
    with _noting(problems):
        for number, variables in shapes.items():
            apply_fn = trial.functions["apply_fn"][number]
            _run("apply_fn", apply_fn, variables, trial.batch)
        runs = True
    if "update_fn" in trial.functions:
        with _noting(problems):
            update_fn = trial.functions["update_fn"][0]
            _run("update_fn", update_fn, trial.models[0], trial.batch)
    return runs


def _run(
    key: str, function: Callable[..., Any], variables: PyTree, batch: PyTree
) -> None:
    """Run a function of the recipe on shapes, and say which it is if that fails."""
    try:
        jax.eval_shape(function, variables, batch)
    except Exception as error:  # a recipe's own code may raise any
        if key == "apply_fn" and (why := explain_failure(function, variables, batch)):
            raise ValueError(f"recipe: {why}") from error
        raise ValueError(
            f"recipe: {key}: expected a function that runs on the variables and a "
            f"batch, got {error!r}. Correct the function, or what it is given."
        ) from error


def _prepared(
    problems: list[str], path: Path, recipe: Recipe, trial: _Trial
) -> Prepared | None:
    """Find out what is merged; with nothing frozen if that is what is wrong."""
    apply_fns = [trial.functions["apply_fn"][number] for number in trial.models]
    spec, models = None, list(trial.models.values())
    with _noting(problems):
        if recipe.spec is not None:
            spec = spec_by(path, recipe, apply_fns[0], [trial.batch], models[0])
        apply_fn = apply_fns if trial.options.separate else apply_fns[0]
        inputs = Inputs(apply_fn, models, (), spec)
        options = dataclasses.replace(trial.options, weights=None)
        with _noting(problems):
            return prepare("recipe", inputs, trial.batch, options)
        if options.frozen:
            options = dataclasses.replace(options, frozen=())
            with _noting([]):  # it has been said
                return prepare("recipe", inputs, trial.batch, options)
    return None


def _job(problems: list[str], prepared: Prepared, batch: PyTree, plan: Plan) -> Job:
    """Find out what is to be done, and note what of it cannot be."""
    rows = prepared.options.rows
    with _noting(problems):
        # Of several ways to merge, those that cannot be carried are not tried.
        zips = all(row.zips for row in rows)
        check_carried("recipe", prepared.apart, zips)
    taps: Mapping[str, tuple[Tap, ...]] = {}
    if any(row.activations for row in rows):
        with _noting(problems):
            program = trace(prepared.trunk_fn, prepared.trunks[0], batch)
            taps = find_taps(program, prepared.spec)
        with _noting(problems):
            labels = [name for name, where in taps.items() if where]
            check_read("recipe", prepared.apart, labels)
    in_memory = not plan.streamed
    return Job(
        prepared,
        trace(prepared.apply_fns[0], prepared.models[0], batch),
        taps=taps,
        batches=plan.batches,
        checked=in_memory or is_checked(plan.recipe),
        streamed=plan.streamed and not prepared.options.needs_all_models,
    )
