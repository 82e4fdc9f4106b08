"""Recorded: what decided a merge of fine-tunes, in plain values."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jmudsc.finetunes.job import Job
from jmudsc.finetunes.request import Request


def recorded(request: Request) -> dict[str, Any]:
    """Return what decided a merge, as provenance stores it."""
    common, tasks = request.common, request.tasks
    owners = None if tasks is None else tasks.owners
    told = {
        "method": _plain(request.method),
        "base": request.base is not None,
        "models": len(request.models),
        **{name: _plain(value) for name, value in request.options.items()},
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
    return told | {name: _plain(value) for name, value in extra.items() if value}


def changes_of(job: Job) -> dict[str, str]:
    """Return which leaves are not merged, and why."""
    whose = "the first model" if job.base is None else "the base"
    return {
        path: f"taken from {whose}: it {plan.copied}"
        for path, plan in job.plans.items()
        if plan.copied is not None
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
