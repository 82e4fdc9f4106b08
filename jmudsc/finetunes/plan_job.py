"""Planning: what every leaf is to become, with all that is wrong told at once."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmudsc import paths
from jmudsc.finetunes.depth import depths
from jmudsc.finetunes.job import Job, LeafPlan
from jmudsc.finetunes.lambda_search import lambda_problems
from jmudsc.finetunes.leaf_layout import Layout, layout_of, letters_problems
from jmudsc.finetunes.leafwise import VECTORS
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.methods import method_of, method_problems
from jmudsc.finetunes.option import Number
from jmudsc.finetunes.options import filled, names_in, respelled, setting_problems
from jmudsc.finetunes.request import Request
from jmudsc.finetunes.settings import is_like, matched
from jmudsc.finetunes.tree_checks import counted, is_float
from jmudsc.keys import check_key
from jmudsc.repairs.table import asked, clashes, names_of

_STATISTICS = {"mean", "var", "running_mean", "running_var"}


def plan_job(
    where: str,
    request: Request,
    layouts: Mapping[str, Layout] | None = None,
) -> Job:
    """Plan a merge.

    Args:
        where: the caller, named in errors.
        request: what is asked for; its trees are of one structure.
        layouts: path -> how it is cut, where that is known of a function. None if
            there is no function, or it has not been looked at yet; how large matrices
            are is then not checked.

    Returns:
        The job.

    Raises:
        ValueError: listing everything that is wrong with methods and options.
    """
    models = tuple(paths.flatten(model) for model in request.models)
    base = None if request.base is None else paths.flatten(request.base)
    donor = models[0] if base is None else base
    common, options = request.common, respelled(where, request.options)
    methods = _methods(where, request)
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in donor.items()}
    problems = [
        *_need_problems(request, methods.values()),
        *lambda_problems(request.lambda_, common.score is not None, common.lambdas),
        *setting_problems(methods.values(), options, len(models), list(donor)),
        *_common_problems(request, methods.values(), shapes),
    ]
    if problems:
        raise ValueError(_refused(where, problems))
    if options.get("lambda_") in ("auto", "search"):
        options["lambda_"] = 1 / len(models)
    deep = depths(donor)
    plans = {}
    for path, leaf in donor.items():
        method = methods[_name_for(request.method, path)]
        known = None if matched(path, common.axes) else (layouts or {}).get(path)
        plans[path] = LeafPlan(
            path,
            method,
            filled(method, options),
            known or layout_of(path, shapes[path], common.axes),
            deep.get(path, 0.0),
            _why_copied(leaf, path, common.excluded),
            is_statistic(path),
        )
    if layouts is not None or request.apply_fn is None or request.tasks is None:
        _check_ranks(where, plans, shapes, len(models))
    alpha = common.calibrate_alpha
    alphas = {m.name: alpha or m.calibration for m in methods.values()}
    calibrate = alphas if common.calibrate else None
    entropy = _entropy(where, request.key)
    return Job(
        base, models, plans, entropy, vectors=common.vectors, calibrate=calibrate
    )


def is_statistic(path: str) -> bool:
    """Whether a leaf is called as running statistics are.

    Example:
        >>> is_statistic("batch_stats/bn/mean"), is_statistic("bn.running_var")
        (True, True)
    """
    return path.split("/")[-1].split(".")[-1] in _STATISTICS


def _methods(where: str, request: Request) -> dict[str, Method]:
    """Return the row of every method that is asked for."""
    names = names_in(request.method)
    if problems := [line for name in names for line in method_problems(name)]:
        raise ValueError(_refused(where, problems))
    return {name: method_of(name) for name in names}


def _entropy(where: str, key: Any) -> tuple[int, ...]:
    """Return the numbers that a key consists of."""
    if key is None:
        return ()
    check_key(where, key)
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(key) if is_typed else key
    return tuple(map(int, np.asarray(data).reshape(-1)))


def _name_for(method: str | Mapping[str, str], path: str) -> str:
    if not isinstance(method, Mapping):
        return method
    pattern = matched(path, method)
    assert pattern is not None  # as checked
    return method[pattern]


def _why_copied(leaf: Any, path: str, exclude: Iterable[str]) -> str | None:
    pattern = matched(path, exclude)
    if pattern is not None:
        return f'is excluded by "{pattern}"'
    return None if is_float(leaf) else "holds no floating-point numbers"


def _need_problems(request: Request, methods: Iterable[Method]) -> list[str]:
    """Return what is missing, or too much, for the methods."""
    found, models = [], len(request.models)
    for method in methods:
        name = f'"{method.name}"'
        many = f"at least {method.fewest}" if method.most is None else method.most
        if models < method.fewest or models > (method.most or models):
            found.append(f"models: expected {many} for {name}, got {models}")
        if method.base == "needed" and request.base is None:
            found.append(
                "base: expected the variables that the models were trained from, for "
                f"{name}, got None"
            )
        if method.is_random and request.key is None:
            found.append(f"key: expected a PRNG key for {name}, got None")
        if method.needs_data and request.apply_fn is None:
            found.append(f"apply_fn: expected a function for {name}, got None")
        if method.needs_data and request.tasks is None:
            found.append(f"batches: expected inputs for {name}, got None")
        if method.runs == "greedy" and request.common.score is None:
            found.append(
                f"score: expected a function of variables for {name}, got None"
            )
        if method.runs and isinstance(request.method, Mapping):
            found.append(f"method: expected {name} for all leaves, got it for some")
        if method.needs_data and request.common.separated:
            found.append(f"separate: expected no patterns with {name}, got some")
    functions = {"apply_fn": request.apply_fn, "update_fn": request.common.update_fn}
    found += [
        f"{name}: expected one function where no leaves are separate, got a list"
        for name, given in functions.items()
        if isinstance(given, Sequence) and not request.common.separated
    ]
    for option in ("refit", "repair"):
        known, name = names_of(option), getattr(request.common, option)
        if name is not None and name not in known:
            hint = paths.did_you_mean(str(name), known)
            said = f"{option}: expected one of {', '.join(known)}, got {name!r}{hint}"
            found.append(said)
    found += [line.removesuffix(".") for line in clashes(request.common.repairs)]
    for row in asked(request.common.repairs):
        named = f'{row.option}="{row.name}"'
        if request.apply_fn is None or request.tasks is None:
            found.append(f"{named}: expected apply_fn and batches, got None")
    if request.apply_fn is not None and request.tasks is None:
        missing = "batches: expected a batch to go with apply_fn, got None"
        found += [] if any("batches:" in line for line in found) else [missing]
    return found


def _common_problems(
    request: Request,
    methods: Iterable[Method],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
    found = letters_problems(request.common.axes, shapes)
    patterns = {"exclude": request.common.excluded}
    if isinstance(request.method, Mapping):
        patterns["method"] = list(request.method)
        left = [path for path in shapes if matched(path, request.method) is None]
        if left:
            found.append(
                f"method: expected a pattern for every leaf, got none for "
                f'{len(left)} of {len(shapes)}, such as {left[0]}; end with "*"'
            )
    found += [
        f'{name}: pattern "{pattern}" matches no leaf'
        f"{paths.did_you_mean(pattern, shapes)}"
        for name, given in patterns.items()
        for pattern in given
        if not any(is_like(path, pattern) for path in shapes)
    ]
    if request.common.vectors not in VECTORS:
        kinds = ", ".join(f'"{kind}"' for kind in VECTORS)
        found.append(
            f"vectors: expected one of {kinds}, got {request.common.vectors!r}"
        )
    if request.common.calibrate not in (None, "svc"):
        found.append(
            f'calibrate: expected None or "svc", got {request.common.calibrate!r}'
        )
    elif request.common.calibrate and request.base is None:
        found.append("base: expected one to calibrate against, got None")
    alpha = request.common.calibrate_alpha
    if alpha is not None and not Number(0.0, above=True).holds(alpha):
        found.append(f"calibrate_alpha: expected a number > 0, got {alpha!r}")
    return found


def _check_ranks(
    where: str,
    plans: Mapping[str, LeafPlan],
    shapes: Mapping[str, tuple[int, ...]],
    models: int,
) -> None:
    """Check that matrices have directions enough to share among the models."""
    small = []
    for path, plan in plans.items():
        if plan.method.name == "tsv" and plan.cuts_matrices and plan.copied is None:
            sizes = plan.layout.sizes(shapes[path])[1:]
            if min(sizes) < models and not plan.settings["rank"]:
                small.append(f"{path} has matrices {sizes[0]} x {sizes[1]}")
    if small:
        raise ValueError(
            f"{where}: expected at least {models} rows and columns in each matrix for "
            f"tsv with {models} models, got {counted(len(small), 'leaf', 'leaves')} "
            "with fewer:\n"
            f"{paths.listed(small)}\nGive them another method: "
            'method={"PATTERN": "task_arithmetic", "*": "tsv"}, or set rank.'
        )


def _refused(where: str, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        end = "" if problems[0].endswith("?") else "."
        return f"{where}: {problems[0]}{end} Correct it and call again."
    return (
        f"{where}: {len(problems)} arguments do not fit:\n"
        f"{paths.listed(problems, most=30)}\nCorrect them and call again."
    )
