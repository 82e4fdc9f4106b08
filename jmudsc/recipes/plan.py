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
from jmudsc.checkpoints.load import open_variables
from jmudsc.derivation.program import trace
from jmudsc.derivation.taps import find_taps, Tap
from jmudsc.matching.methods import TABLE
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
from jmudsc.recipes.resolve import place, resolved, spec_by
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
    options = _options(problems, recipe, named)
    say("looking at checkpoints", 0, 1)
    models = tuple(_model(problems, recipe, source) for source in recipe.models)
    shapes = [model.shapes for model in models if model]
    whole = bool(models) and all(models)
    alike = bool(shapes) and _can_be_prepared(problems, recipe, shapes)
    count, batch = _batches(problems, named.get("batches"), recipe)
    plan = Plan(recipe, models, count)
    if whole and not fits(shapes, room() if memory is None else memory):
        plan = dataclasses.replace(plan, streamed=True)
    if alike and models[0] and batch is not None and "apply_fn" in named:
        say("tracing the model", 0, 1)
        inputs = _inputs(problems, path, plan, named, batch)
        prepared = inputs and _prepared(problems, inputs, batch, options)
        if prepared:
            plan = dataclasses.replace(plan, spec=prepared.spec)
            job = _job(problems, prepared, batch, plan)
            if whole:
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


def _options(
    problems: list[str], recipe: Recipe, named: Mapping[str, Any]
) -> MergeOptions:
    """Return the options of a recipe; note how they contradict each other.

    A function that cannot be imported is given all the same, by one that does nothing.
    """
    functions = {key: named.get(key, lambda *_: None) for key in recipe.functions}
    options = dataclasses.replace(recipe.options, **functions)
    problems += [f"recipe: {problem}" for problem in options.problems()]
    return options


def _model(problems: list[str], recipe: Recipe, source: Source) -> Model | None:
    """Look at a checkpoint, and whether what is in it could be saved."""
    with _noting(problems):
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
    return None


def _can_be_prepared(
    problems: list[str], recipe: Recipe, shapes: Sequence[PyTree]
) -> bool:
    """Note how models differ in what is merged; return whether that is known."""
    trunks: Sequence[PyTree] = shapes
    if recipe.options.separate:
        trunks = ()
        with _noting(problems):
            trunks = trunks_of("recipe", shapes, list(recipe.options.separate))
    if trunks:
        problems += [f"models: {difference}" for difference in differences(trunks)]
    return bool(trunks)


def _batches(
    problems: list[str], batches: Any, recipe: Recipe
) -> tuple[int | None, PyTree | None]:
    """Return how many batches there are, and the first."""
    if batches is None:
        return None, None
    with _noting(problems):
        check_batches("recipe", batches, recipe.options)
        tasks = batches.tasks if isinstance(batches, Chained) else (batches,)
        counts = [len(task) for task in tasks if isinstance(task, Sized)]
        count = sum(counts) if len(counts) == len(tasks) else None
        return count, first_batch("recipe", batches)
    return None, None


def _inputs(
    problems: list[str],
    path: Path,
    plan: Plan,
    named: Mapping[str, Any],
    batch: PyTree,
) -> Inputs | None:
    """Return what is merged, as shapes, once its functions are known to run on them."""
    recipe, separate = plan.recipe, plan.recipe.options.separate
    known = [number for number, model in enumerate(plan.models) if model]
    shapes = [model.shapes for model in plan.models if model]
    with _noting(problems):
        functions = {
            key: per_model("recipe", key, named[key], len(plan.models), separate)
            for key in ("apply_fn", "update_fn")
            if key in named
        }
        apply_fns = [functions["apply_fn"][number] for number in known]
        heads = list(zip(apply_fns, shapes, strict=True))[: None if separate else 1]
        if "update_fn" in functions:
            with _noting(problems):
                _run("update_fn", functions["update_fn"][0], shapes[0], batch)
        for apply_fn, variables in heads:
            _run("apply_fn", apply_fn, variables, batch)
        spec = None
        if recipe.spec is not None:
            spec = spec_by(path, recipe, apply_fns[0], [batch], shapes[0])
        return Inputs(apply_fns if separate else apply_fns[0], shapes, (), spec)
    return None


def _run(
    key: str, function: Callable[..., Any], variables: PyTree, batch: PyTree
) -> None:
    """Run a function of the recipe on shapes, and say which it is if that fails."""
    try:
        jax.eval_shape(function, variables, batch)
    except Exception as error:  # a recipe's own code may raise any
        raise ValueError(
            f"recipe: {key}: expected a function that runs on the variables and a "
            f"batch, got {error!r}. Correct the function, or what it is given."
        ) from error


def _prepared(
    problems: list[str], inputs: Inputs, batch: PyTree, options: MergeOptions
) -> Prepared | None:
    """Find out what is merged; with nothing frozen if that is what is wrong."""
    with _noting(problems):
        return prepare("recipe", inputs, batch, options)
    if options.frozen:
        with _noting([]):  # has been said
            thawed = dataclasses.replace(options, frozen=())
            return prepare("recipe", inputs, batch, thawed)
    return None


def _job(problems: list[str], prepared: Prepared, batch: PyTree, plan: Plan) -> Job:
    """Find out what is to be done, and note what of it cannot be."""
    method = TABLE[prepared.options.method]
    with _noting(problems):
        check_carried("recipe", prepared.apart, method.zips)
    taps: Mapping[str, tuple[Tap, ...]] = {}
    if method.activations:
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
