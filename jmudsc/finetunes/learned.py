"""Learned: what a method finds out of models and data before it merges any leaf."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jmudsc.finetunes.fisher import gradient_squares
from jmudsc.finetunes.inputs import (
    input_layouts,
    input_moments,
    scale_moments,
    scales_in,
)
from jmudsc.finetunes.job import Evidence, Job, LeafPlan
from jmudsc.finetunes.request import Request
from jmudsc.finetunes.tree_scope import thresholds


def learned(where: str, job: Job, request: Request) -> Job:
    """Return a job in which every method knows what it needs to know.

    Args:
        where: the caller, named in errors.
        job: the plan.
        request: what was asked for, with models in memory where data are needed.
    """
    evidence: dict[str, Evidence] = {}
    for method in {
        plan.method.name: plan.method for plan in job.plans.values()
    }.values():
        own = [plan for plan in job.plans.values() if plan.method is method]
        if method.learns == "thresholds":
            found = thresholds(job, method.name)
            evidence |= {} if found is None else {method.name: found}
        elif method.learns == "inputs":
            plans, known = _inputs(own, request)
            job = replace(job, plans={**job.plans, **plans})
            evidence[method.name] = known
        elif method.learns == "gradients":
            evidence[method.name] = _gradients(where, own, job, request)
    return replace(job, evidence=evidence)


def _inputs(
    own: list[LeafPlan], request: Request
) -> tuple[dict[str, LeafPlan], Evidence]:
    """Learn the second moments of what goes into the kernels among some leaves."""
    assert request.tasks is not None
    samples = own[0].settings["samples"]
    first = next(request.tasks.of(0, samples))
    merged = {plan.path: plan for plan in own if plan.copied is None}
    layouts = input_layouts(request.apply_fn, request.donor, first)
    known = {p: layout for p, layout in layouts.items() if p in merged}
    moments = [
        input_moments(
            request.apply_fn, model, request.tasks.of(number, samples), list(known)
        )
        for number, model in enumerate(request.models)
    ]

    scales = []
    if own[0].method.vectors is not None:
        found = scales_in(request.apply_fn, request.donor, first)
        scales = [path for path in found if path in merged and path not in known]
    squares = [
        scale_moments(
            request.apply_fn, model, request.tasks.of(number, samples), scales
        )
        for number, model in enumerate(request.models)
    ]

    def evidence(path: str, number: int) -> Mapping[str, Any]:
        if path in scales:
            runs = merged[path].layout.runs
            return {"squares": [runs(each[path])[number] for each in squares]}
        if path not in known:
            return {}
        return {"inputs": [each[path][number] for each in moments]}

    plans = {path: replace(merged[path], layout=known[path]) for path in known}
    apart = {
        path: replace(plan, layout=replace(plan.layout, letters=_no_matrix(plan)))
        for path, plan in merged.items()
        if path not in known
    }
    return plans | apart, evidence


def _no_matrix(plan: LeafPlan) -> str:
    return plan.layout.letters.replace("i", "o")


def _gradients(where: str, own: list[LeafPlan], job: Job, request: Request) -> Evidence:
    """Learn the squares of gradients, each model's divided by their norm."""
    assert request.tasks is not None
    samples = own[0].settings["samples"]
    merged = [plan.path for plan in own if plan.copied is None]
    tasks = [request.tasks.of(n, samples) for n in range(len(request.models))]
    squares = []
    for found in gradient_squares(where, request.apply_fn, request.models, tasks):
        norm = np.sqrt(sum(float(np.square(found[p]).sum()) for p in merged)) or 1.0
        squares.append({path: found[path] / norm for path in merged})

    def evidence(path: str, number: int) -> Mapping[str, Any]:
        runs = job.plans[path].layout.runs
        return {"fisher": [runs(each[path])[number] for each in squares]}

    return evidence
