"""Recorded: what decided a merge of fine-tunes, in plain values."""

from typing import Any

from jmudsc.finetunes.job import Job
from jmudsc.finetunes.options import plain
from jmudsc.finetunes.request import Request


def recorded(request: Request) -> dict[str, Any]:
    """Return what decided a merge, as provenance stores it."""
    common, tasks = request.common, request.tasks
    owners = None if tasks is None else tasks.owners
    told = {
        "method": plain(request.method),
        "base": request.base is not None,
        "models": len(request.models),
        **{name: plain(value) for name, value in request.options.items()},
    }
    extra = {
        "exclude": common.excluded,
        "axes": common.axes,
        "separate": common.separated,
        "calibrate": common.calibrate,
        "calibrate_alpha": common.calibrate_alpha,
        "vectors": None if common.vectors == "average" else common.vectors,
        "refit": common.refit,
        "refit_ridge": common.refit_ridge if common.refit else None,
        "repair": common.repair,
        "batches per model": owners
        and [*map(owners.count, range(len(request.models)))],
    }
    return told | {name: plain(value) for name, value in extra.items() if value}


def changes_of(job: Job) -> dict[str, str]:
    """Return which leaves are not merged, and why."""
    whose = "the first model" if job.base is None else "the base"
    return {
        path: f"taken from {whose}: it {plan.copied}"
        for path, plan in job.plans.items()
        if plan.copied is not None
    }
