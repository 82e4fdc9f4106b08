"""Plan report: a plan as tables for people."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jmudsc.finetunes.options import FinetuneOptions
from jmudsc.merging.options import MergeOptions
from jmudsc.paths import flatten, plural
from jmudsc.recipes.costs import Stage, SWEEPS
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.machine_speed import Rates
from jmudsc.recipes.planned import Plan
from jmudsc.recipes.schema import Recipe
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.tables import table


def plan_report(plan: Plan) -> str:
    """Describe a plan: models, labels, fixed axes, stages, and all that is wrong.

    Args:
        plan: the plan.

    Returns:
        Markdown.
    """
    recipe = plan.recipe
    over = (
        ""
        if plan.batches is None
        else f" over {plural(plan.batches, 'batch', 'batches')}"
    )
    models = plural(len(recipe.models), "model")
    lines = [f"# Plan: {_method(recipe)} of {models}{over}"]
    lines += ["", *_translation(recipe)] if recipe.mergekit else []
    lines += ["", *_models(plan)] if plan.models else []
    lines += ["", *_leaves(plan)] if plan.steps else []
    lines += ["", _streaming(plan.recipe)] if plan.streamed else []
    lines += ["", *_labels(plan.spec)] if plan.spec else []
    lines += ["", *_fixed(plan.spec)] if plan.spec and plan.spec.fixed else []
    if plan.stages and plan.rates:
        lines += ["", *_stages(plan, plan.rates)]
    lines += ["", *_problems(plan)]
    return "\n".join(lines) + "\n"


def size_text(count: int) -> str:
    """Write a number of bytes.

    Example:
        >>> size_text(512), size_text(3 * 2**29)
        ('512 B', '1.50 GiB')
    """
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.2f} {unit}"
    return f"{count} B"


def _method(recipe: Recipe) -> str:
    method = recipe.options.method
    return method if isinstance(method, str) else ", ".join(method.values())


def _models(plan: Plan) -> list[str]:
    rows, recipe = [], plan.recipe
    known = plan.models if recipe.base is None else (*plan.models, plan.base)
    for source, model in zip(recipe.sources, known, strict=True):
        if model is None:
            rows.append([source.path, *"----"])
            continue
        leaves = flatten(model.shapes)
        parameters = sum(math.prod(leaf.shape) for leaf in leaves.values())
        told = [str(len(leaves)), f"{parameters:,}", size_text(model.nbytes)]
        rows.append([source.path, model.kind, *told])
    return [table(["model", "format", "leaves", "parameters", "size"], rows)]


def _leaves(plan: Plan) -> list[str]:
    return [
        f"- {fate}: {plural(count, 'leaf', 'leaves')}"
        for fate, count in plan.steps.items()
    ]


def _translation(recipe: Recipe) -> list[str]:
    """Show the recipe that a configuration of mergekit is."""
    text = dump_recipe(recipe).strip()
    return ["Translated from mergekit:", "", "```yaml", text, "```"]


def _streaming(recipe: Recipe) -> str:
    if isinstance(recipe.options, FinetuneOptions):
        return "The models stay on disk, read leaf by leaf."
    if recipe.options.needs_all_models:
        why = "refit, repair, separate and a balance that is searched for"
        return (
            f"The models have no room in memory; {why} read all of them nevertheless."
        )
    return "The models have no room in memory: they stay on disk, read leaf by leaf."


def _labels(spec: PermutationSpec) -> list[str]:
    labelled = {site.path for label in spec.labels.values() for site in label.sites}
    kinds: dict[Any, list[str]] = {}
    for name, label in spec.labels.items():
        parents = " ".join(str(spec.labels[parent].size) for parent in label.parents)
        kinds.setdefault((label.size, parents, label.fixed), []).append(name)
    rows = [
        [_few(names), str(len(names)), str(size), parents or "-", fixed or "-"]
        for (size, parents, fixed), names in kinds.items()
    ]
    header = ["labels", "count", "units", "in each of", "fixed, since it"]
    counts = f"{len(labelled)} of {plural(len(spec.axes), 'leaf', 'leaves')}"
    return [
        f"{plural(len(spec.labels), 'label')} on {counts}",
        "",
        table(header, rows),
    ]


def _fixed(spec: PermutationSpec) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for (path, axis), why in spec.fixed.items():
        reasons.setdefault(why, []).append(f"{path}:{axis}")
    count = len(spec.fixed)
    axes = "1 axis stays as it is" if count == 1 else f"{count} axes stay as they are"
    lines = [f"{axes}, wholly or in part:"]
    return [*lines, ""] + [f"- {why}: {_few(axes)}" for why, axes in reasons.items()]


def _stages(plan: Plan, rates: Rates) -> list[str]:
    stages, is_matched = plan.stages, isinstance(plan.recipe.options, MergeOptions)
    rows = [
        [
            stage.name,
            size_text(sum(stage.host.values())),
            size_text(sum(stage.device.values())),
            *([] if is_matched else [size_text(stage.read)]),
            "-" if stage.seconds is None else f"{stage.seconds:.1f}",
        ]
        for stage in stages
    ]
    header = ["stage", "host", "device", *([] if is_matched else ["read"]), "seconds"]
    if not is_matched:
        return [table(header, rows), "", *_finetuned_notes(stages)]
    most = max(stages, key=lambda stage: sum(stage.device.values()))
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    return [
        table(header, rows),
        "",
        f"Most on the device: {most.name}, {_parts(most.device)}.",
        f"About {sum(known):.0f} s in all, by short runs just now "
        f"({rates.flops / 1e9:.0f} GFLOP/s, {rates.program:.2f} s to compile",
        f"a small program) and with {SWEEPS} sweeps of matching; reading and writing "
        "disks is not in it.",
        "Memory is that of arrays, without what programs put aside. Where the device "
        "is the host, add the two.",
    ]


def _finetuned_notes(stages: Sequence[Stage]) -> list[str]:
    held = lambda stage: {**stage.host, **stage.device}
    most = max(stages, key=lambda stage: sum(held(stage).values()))
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    read = size_text(sum(stage.read for stage in stages))
    return [
        f"Most in memory: {most.name}, {_parts(held(most))}.",
        f"About {sum(known):.0f} s in all, by short runs just now; reading {read} from "
        "disk and writing is not in it.",
        "Memory is that of arrays, without what programs put aside.",
    ]


def _parts(held: Mapping[str, int]) -> str:
    parts = sorted(held.items(), key=lambda part: -part[1])
    return ", ".join(f"{what} {size_text(count)}" for what, count in parts if count)


def _problems(plan: Plan) -> list[str]:
    if not plan.problems:
        return ["Nothing is wrong, as far as can be told without reading the arrays."]
    indented = [problem.replace("\n", "\n  ") for problem in plan.problems]
    lines = [f"{plural(len(indented), 'problem')}:", ""]
    return lines + [f"- {problem}" for problem in indented]


def _few(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return ", ".join(names[:most] + more)
