"""Plan finetuned: what a recipe of fine-tunes would do, from shapes alone."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from jmudsc.batches import Chained
from jmudsc.finetunes.job import Job
from jmudsc.finetunes.merge_finetunes import layouts_by_function, reads_all
from jmudsc.finetunes.plan_job import plan_job
from jmudsc.finetunes.request import Request, trunk_of
from jmudsc.finetunes.task_batches import TaskBatches
from jmudsc.finetunes.tree_checks import check_trees
from jmudsc.recipes.costs_finetuned import finetuned_stages
from jmudsc.recipes.finetuned import check_different, request_of
from jmudsc.recipes.hugging_face import fitted
from jmudsc.recipes.lora_models import check_space
from jmudsc.recipes.planned import Machine, noting, Plan, run_on_shapes

_WHERE = "recipe"


def plan_finetuned(
    problems: list[str], plan: Plan, named: Mapping[str, Any], machine: Machine
) -> Plan:
    """Plan a merge of fine-tunes.

    Args:
        problems: is added to.
        plan: with the models and the base.
        named: what could be imported of what the recipe names.
        machine: what it is to be done on.

    Returns:
        The plan with its stages, if all that they hang on could be told.
    """
    recipe = plan.recipe
    with noting(problems):
        check_different(recipe)
    with noting(problems):
        check_space(recipe)
    shapes = [model.shapes for model in plan.models if model]
    base = plan.base.shapes if plan.base else None
    lacks_base = recipe.base is not None and base is None
    if not shapes or len(shapes) < len(plan.models) or lacks_base:
        return plan
    # In the place of functions that cannot be imported are some that do nothing.
    missing = [key for key in recipe.functions if key not in named]
    given = {**named, **dict.fromkeys(missing, lambda *_: None)}
    whole = request = None
    with noting(problems):
        if base is None:
            shapes = fitted(recipe, shapes)
        else:
            *shapes, base = fitted(recipe, [*shapes, base])
        whole = request_of(recipe, given | {"batches": None}, shapes, base)
        whole = dataclasses.replace(whole, tasks=_tasks(given.get("batches")))
        request = trunk_of(_WHERE, whole)
        check_trees(_WHERE, request.models, request.base)
    if whole is None or request is None:
        return plan
    with noting(problems):
        job = plan_job(_WHERE, request)
        layouts = None
        with noting(problems):
            _run(whole)
            layouts = layouts_by_function(whole)
        job = plan_job(_WHERE, request, layouts)
        rates = machine.measured()
        stages = tuple(finetuned_stages(job, request, rates))
        streamed = not reads_all(job, request)
        return dataclasses.replace(
            plan, stages=stages, rates=rates, streamed=streamed, steps=_steps(job)
        )
    return plan


def _steps(job: Job) -> dict[str, int]:
    """Return what becomes of leaves, and of how many each."""
    found: dict[str, int] = {}
    for plan in job.plans.values():
        fate = plan.method.name if plan.copied is None else "copied"
        if plan.copied is None and plan.is_statistic:
            fate = "averaged, as running statistics are"
        elif plan.copied is None and plan.method.cuts == "matrices":
            kind = "matrices" if plan.cuts_matrices else job.vectors
            fate = f"{fate}, {kind}"
        found[fate] = found.get(fate, 0) + 1
    return found


class _FirstOnly:
    """The first of some batches, which is all that a plan looks at."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return itertools.islice(iter(self.batches), 1)


def _tasks(batches: Any) -> TaskBatches | None:
    if batches is None:
        return None
    tasks = batches.tasks if isinstance(batches, Chained) else [batches]
    return TaskBatches(Chained(tuple(map(_FirstOnly, tasks))))


def _run(request: Request) -> None:
    """Run the functions of a recipe on shapes, if there are any."""
    if request.apply_fn is None or request.tasks is None:
        return
    batch = next(request.tasks.of(0, 2))
    functions = {"apply_fn": request.first_fn}
    if callable(request.common.update_fn):
        functions["update_fn"] = request.common.update_fn
    for key, function in functions.items():
        run_on_shapes(key, function, request.models[0], batch)
