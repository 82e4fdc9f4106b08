"""Plan: what a recipe would do, what it would take, and all that is wrong with it.

Checkpoints are asked for shapes and dtypes only, the model is traced on shapes, and no
check ends at the first error.
"""

import dataclasses
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from jaxtyping import PyTree

from jmudsc.batches import Chained, first_batch
from jmudsc.checkpoints.dtypes import abstract, check_savable
from jmudsc.checkpoints.formats import format_of
from jmudsc.checkpoints.urls import AnyPath, folder_of
from jmudsc.derivation.program import trace
from jmudsc.derivation.taps import find_taps, Tap
from jmudsc.finetunes.options import FinetuneOptions
from jmudsc.merging.inputs import check_batches, Inputs, per_model
from jmudsc.merging.memory_budget import fits, left_for_statistics, room
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import prepare, Prepared
from jmudsc.merging.separate import check_carried, check_read, trunks_of
from jmudsc.progress import Progress, silent
from jmudsc.recipes.costs import Job, stages_of
from jmudsc.recipes.lora_models import is_adapter
from jmudsc.recipes.machine_speed import Rates
from jmudsc.recipes.merge import free_places, is_checked
from jmudsc.recipes.plan_finetuned import plan_finetuned
from jmudsc.recipes.planned import Machine, Model, noting, Plan, run_on_shapes
from jmudsc.recipes.reader import parse_keys, read_content
from jmudsc.recipes.resolve import load_model, open_model, resolved, spec_by
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import Source
from jmudsc.spec.check_variables import differences


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
    path: AnyPath,
    *,
    output: AnyPath | str | None = None,
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
        output: where to write, in the place of the recipe's output.
        overwrite: whether an earlier merge at its output may be replaced.
        memory: bytes that the merge may hold, as for `merge_recipe`.
        rates: how fast the machine is; measured if None.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The plan, with all that is wrong.

    Raises:
        FileNotFoundError: if there is no such recipe.
        ValueError: if it is no YAML mapping, or listing all of a configuration of
            mergekit that cannot be translated.
    """
    say = progress or silent
    content, mergekit = read_content(path, output)
    # One of mergekit does not say where to write.
    optional = () if mergekit is None else ("output",)
    recipe, wrong = parse_keys(content, str(path), optional)
    recipe = dataclasses.replace(recipe, folder=folder_of(path), mergekit=mergekit)
    problems = [f"{path}: {problem}" for problem in wrong]
    if recipe.output:
        with noting(problems):
            free_places(recipe, overwrite)
    say("importing", 0, 1)
    named = _named(problems, recipe)
    machine = Machine(room() if memory is None else memory, rates, say)
    if isinstance(recipe.options, FinetuneOptions):
        plan = _looked_at(problems, recipe, say)
        plan = plan_finetuned(problems, plan, named, machine)
    else:
        plan = _matched(problems, path, recipe, named, machine)
    return dataclasses.replace(plan, problems=tuple(problems))


def _looked_at(problems: list[str], recipe: Recipe, say: Progress) -> Plan:
    """Look at the checkpoints of a recipe."""
    say("looking at checkpoints", 0, 1)
    models = tuple(_model(problems, recipe, source) for source in recipe.models)
    base = None if recipe.base is None else _model(problems, recipe, recipe.base)
    return Plan(recipe, models, base)


def _matched(
    problems: list[str],
    path: AnyPath,
    recipe: Recipe,
    named: Mapping[str, Any],
    machine: Machine,
) -> Plan:
    """Plan a merge of networks that are matched."""
    options = _options(problems, recipe, named)
    functions = _functions(problems, recipe, named)
    plan = _looked_at(problems, recipe, machine.say)
    models = plan.models
    alike = _alike(problems, recipe, models)
    count, batch = _batches(problems, named.get("batches"), options)
    trial = _Trial(alike, functions, batch, options)
    shapes = [model.shapes for model in models if model]
    whole = bool(models) and all(models)
    streamed = whole and not fits(shapes, machine.memory)
    budget = left_for_statistics(shapes, machine.memory) if whole else None
    plan = dataclasses.replace(plan, batches=count, streamed=streamed, budget=budget)
    if 0 not in alike or batch is None or "apply_fn" not in functions:
        return plan
    machine.say("tracing the model", 0, 1)
    runs = _runs(problems, trial)
    prepared = _prepared(problems, path, recipe, trial) if runs else None
    if prepared is None:
        return plan
    plan = dataclasses.replace(plan, spec=prepared.spec)
    job = _job(problems, prepared, batch, plan)
    if len(alike) < len(models):
        return plan
    rates = machine.measured()
    stages = tuple(stages_of(job, rates))
    return dataclasses.replace(plan, stages=stages, rates=rates)


def _named(problems: list[str], recipe: Recipe) -> dict[str, Any]:
    """Import what can be imported of what a recipe names."""
    given = [key for key, path in recipe.import_paths.items() if path.name]
    has_own = recipe.models and all(source.batches for source in recipe.models)
    if has_own:
        given.append("batches")
    named: dict[str, Any] = {}
    for key in ("apply_fn", "batches", *recipe.functions):
        if key in given:
            with noting(problems):
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

    In the place of its functions are some that do nothing: these may be wrong. An
    adapter gives no update_fn to models without running statistics.
    """
    none = [key for key in recipe.functions if key in named and named[key] is None]
    there = [key for key in recipe.functions if key not in none]
    functions = {**dict.fromkeys(none), **dict.fromkeys(there, lambda *_: None)}
    options = recipe.family.with_functions(recipe.options, functions)
    problems += [f"recipe: {problem}" for problem in options.problems()]
    return options


def _functions(
    problems: list[str], recipe: Recipe, named: Mapping[str, Any]
) -> dict[str, list[Any]]:
    """Return the functions that can be run, one for each model."""
    count, separate = len(recipe.models), recipe.options.separate
    functions = {}
    for key in ("apply_fn", "update_fn"):
        if named.get(key) is not None:
            with noting(problems):
                functions[key] = per_model("recipe", key, named[key], count, separate)
    return functions


def _model(problems: list[str], recipe: Recipe, source: Source) -> Model | None:
    """Look at a checkpoint, and whether what is in it could be saved."""
    with noting(problems):
        if is_adapter(recipe, source):
            shapes = abstract(source.path, load_model(recipe, source, None, lazy=True))
            return Model(source.path, "LoRA adapter", shapes)
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
        with noting(problems):
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
    with noting(problems):
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
    with noting(problems):
        for number, variables in shapes.items():
            apply_fn = trial.functions["apply_fn"][number]
            run_on_shapes("apply_fn", apply_fn, variables, trial.batch)
        runs = True
    if "update_fn" in trial.functions:
        with noting(problems):
            update_fn = trial.functions["update_fn"][0]
            run_on_shapes("update_fn", update_fn, trial.models[0], trial.batch)
    return runs


def _prepared(
    problems: list[str], path: AnyPath, recipe: Recipe, trial: _Trial
) -> Prepared | None:
    """Find out what is merged; with nothing frozen if that is what is wrong."""
    apply_fns = [trial.functions["apply_fn"][number] for number in trial.models]
    spec, models = None, list(trial.models.values())
    with noting(problems):
        if recipe.spec is not None:
            spec = spec_by(path, recipe, apply_fns[0], [trial.batch], models[0])
        apply_fn = apply_fns if trial.options.separate else apply_fns[0]
        inputs = Inputs(apply_fn, models, (), spec)
        options = dataclasses.replace(trial.options, weights=None)
        with noting(problems):
            return prepare("recipe", inputs, trial.batch, options)
        if options.frozen:
            options = dataclasses.replace(options, frozen=())
            with noting([]):  # it has been said
                return prepare("recipe", inputs, trial.batch, options)
    return None


def _job(problems: list[str], prepared: Prepared, batch: PyTree, plan: Plan) -> Job:
    """Find out what is to be done, and note what of it cannot be."""
    rows = prepared.options.rows
    with noting(problems):
        # Of several ways to merge, those that cannot be carried are not tried, unless
        # they are named.
        each = any if prepared.options.among else all
        zips = each(row.zips for row in rows)
        check_carried("recipe", prepared.apart, zips)
    taps: Mapping[str, tuple[Tap, ...]] = {}
    if any(row.activations for row in rows):
        with noting(problems):
            program = trace(prepared.trunk_fn, prepared.trunks[0], batch)
            taps = find_taps(program, prepared.spec)
        with noting(problems):
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
        budget=plan.budget,
    )
