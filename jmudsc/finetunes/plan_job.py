"""Planning: what every leaf is to become, with all that is wrong told at once."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.depth import depths
from jmudsc.finetunes.job import Job, LeafPlan
from jmudsc.finetunes.leaf_layout import Layout, layout_of, letters_problems
from jmudsc.finetunes.leafwise import LAMBDA, VECTORS
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.methods import method_of, method_problems
from jmudsc.finetunes.option import Number
from jmudsc.finetunes.settings import is_like, matched, problems_of
from jmudsc.lazy import is_lazy

_log = logging.getLogger(__name__)
_STATISTICS = {"mean", "var", "running_mean", "running_var"}
# What mergekit calls options, and what it has that makes no difference here.
_SPELLINGS = {"lambda": "lambda_"}
_IGNORED = {"int8_mask"}


@dataclass(frozen=True, eq=False)
class Request:
    """What a user asks for.

    Attributes:
        models: the variables of each model.
        base: those of the base; None without one.
        method: the name of a method, or patterns of leaves with names.
        options: option of the method, `weight` and `lambda_` among them -> setting.
        exclude: patterns of leaves that are taken from the base as they are.
        axes: pattern of leaves -> letters of their axes.
        vectors: what leaves become that hold no matrix.
        calibrate: `svc` or None.
        calibrate_alpha: the least share that a calibration counts; None for that of
            the method.
    """

    models: Sequence[PyTree]
    base: PyTree | None
    method: str | Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    exclude: Iterable[str] = ()
    axes: Mapping[str, str] = field(default_factory=dict)
    vectors: str = "average"
    calibrate: str | None = None
    calibrate_alpha: float | None = None


def plan_job(
    where: str,
    request: Request,
    layouts: Mapping[str, Layout] | None = None,
    entropy: tuple[int, ...] = (),
) -> Job:
    """Plan a merge.

    Args:
        where: the caller, named in errors.
        request: what is asked for; its trees are of one structure.
        layouts: path -> how it is cut, where that is known of a function.
        entropy: what random numbers are drawn from.

    Returns:
        The job.

    Raises:
        ValueError: listing everything that is wrong with methods and options.
    """
    models = tuple(paths.flatten(model) for model in request.models)
    base = None if request.base is None else paths.flatten(request.base)
    donor = models[0] if base is None else base
    names = _method_names(request.method)
    if problems := [line for name in names for line in method_problems(name)]:
        raise ValueError(_refused(where, problems))
    methods = {name: method_of(name) for name in names}
    options = _respelled(where, request.options)
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in donor.items()}
    problems = [
        *_count_problems(methods.values(), len(models), base is not None),
        *_option_problems(methods.values(), options, len(models), list(donor)),
        *_common_problems(request, methods.values(), shapes),
    ]
    if problems:
        raise ValueError(_refused(where, problems))
    deep = depths(donor)
    plans = {}
    for path, leaf in donor.items():
        method = methods[_name_for(request.method, path)]
        known = None if matched(path, request.axes) else (layouts or {}).get(path)
        plans[path] = LeafPlan(
            path,
            method,
            _settings(method, options),
            known or layout_of(path, shapes[path], request.axes),
            deep.get(path, 0.0),
            _why_copied(leaf, path, request.exclude),
            path.split("/")[-1].split(".")[-1] in _STATISTICS,
        )
    _check_ranks(where, plans, shapes, len(models))
    alphas = {
        method.name: method.calibration
        if request.calibrate_alpha is None
        else request.calibrate_alpha
        for method in methods.values()
    }
    return Job(
        base,
        models,
        plans,
        entropy,
        vectors=request.vectors,
        calibrate=alphas if request.calibrate else None,
    )


def check_trees(where: str, models: Sequence[PyTree], base: PyTree | None) -> None:
    """Check that the models, and the base, are different trees of one structure.

    Floating-point leaves may be of different dtypes.

    Args:
        where: the caller, named in errors.
        models: the variables of each model.
        base: those of the base.

    Raises:
        ValueError: listing every difference from the base, or from the first model
            without one, or the trees that were passed twice.
    """
    trees = [] if base is None else [("base", paths.flatten(base))]
    trees += [(f"models[{n}]", paths.flatten(m)) for n, m in enumerate(models)]
    if not trees:
        raise ValueError(
            f"{where}: expected at least one model, got none. Pass the models as a list."
        )
    (first, leaves), *others = trees
    problems = [
        line
        for name, other in others
        for line in _differences(first, leaves, name, other)
    ]
    if problems:
        raise ValueError(
            f"{where}: expected trees with the same leaves and shapes, got "
            f"{_counted(len(problems), 'difference')}:\n"
            f"{paths.listed(problems, most=30)}\n"
            "Pass models that were trained from this base; rename leaves first, or cut "
            "tables to the same rows."
        )
    if twice := _passed_twice(trees):
        raise ValueError(
            f"{where}: expected different models, got the same arrays as "
            f"{' and '.join(twice)}. Pass each model once, and the base as base= only."
        )


def check_all_finite(where: str, models: Sequence[PyTree], base: PyTree | None) -> None:
    """Check that what is in memory is finite; what is on disk is checked when read.

    Args:
        where: the caller, named in errors.
        models: the variables of each model.
        base: those of the base.

    Raises:
        ValueError: listing every leaf with a NaN or an infinity.
    """
    trees = {f"models[{n}]": model for n, model in enumerate(models)}
    trees |= {} if base is None else {"base": base}
    problems = [
        f"{name}: {path}"
        for name, tree in trees.items()
        if not is_lazy(tree)
        for path, leaf in paths.flatten(tree).items()
        if is_float(leaf) and not bool(jnp.isfinite(jnp.asarray(leaf)).all())
    ]
    if problems:
        raise ValueError(
            f"{where}: expected finite numbers, got NaN or infinity in "
            f"{_counted(len(problems), 'leaf', 'leaves')}:\n{paths.listed(problems)}\n"
            "Take an earlier checkpoint of that run."
        )


def is_float(leaf: Any) -> bool:
    """Whether a leaf holds real or complex numbers, by its dtype."""
    return jnp.issubdtype(jnp.result_type(getattr(leaf, "dtype", leaf)), jnp.inexact)


def _method_names(method: str | Mapping[str, str]) -> list[str]:
    return list(method.values()) if isinstance(method, Mapping) else [method]


def _name_for(method: str | Mapping[str, str], path: str) -> str:
    if not isinstance(method, Mapping):
        return method
    pattern = matched(path, method)
    assert pattern is not None  # as checked
    return method[pattern]


def _respelled(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by the names they have here."""
    for name in _IGNORED & options.keys():
        _log.info("%s: %s makes no difference here, and is left out.", where, name)
    return {
        _SPELLINGS.get(name, name): value
        for name, value in options.items()
        if name not in _IGNORED
    }


def _settings(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every option of a method is set to, its scale included."""
    settings = {o.name: options.get(o.name, o.default) for o in method.options}
    return settings | {"lambda_": options.get("lambda_", method.lambda_)}


def _why_copied(leaf: Any, path: str, exclude: Iterable[str]) -> str | None:
    pattern = matched(path, exclude)
    if pattern is not None:
        return f'is excluded by "{pattern}"'
    return None if is_float(leaf) else "holds no floating-point numbers"


def _count_problems(
    methods: Iterable[Method], models: int, has_base: bool
) -> list[str]:
    found = []
    for method in methods:
        many = f"at least {method.fewest}"
        if method.most is not None:
            many = f"{method.most}"
        if models < method.fewest or models > (method.most or models):
            found.append(f'models: expected {many} for "{method.name}", got {models}')
        if method.base == "needed" and not has_base:
            found.append(
                f'base: expected the variables that the models were trained from, for '
                f'"{method.name}", got None'
            )
    return found


def _option_problems(
    methods: Iterable[Method],
    options: Mapping[str, Any],
    models: int,
    leaves: list[str],
) -> list[str]:
    methods = list(methods)
    known = {name: option for m in methods for name, option in m.by_name.items()}
    if any(method.lambda_ is not None for method in methods):
        known["lambda_"] = LAMBDA
    found = []
    for name, setting in options.items():
        if name in known:
            found += problems_of(known[name], setting, models, leaves)
        else:
            hint = paths.did_you_mean(name, known)
            takes = ", ".join(known) or "no options"
            found.append(f"{name}: expected one of {takes}, got {name}={setting!r}{hint}")
    if not found:
        for method in methods:
            found += method.check(_settings(method, options), models)
    return found


def _common_problems(
    request: Request,
    methods: Iterable[Method],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
    found = letters_problems(request.axes, shapes)
    patterns = {"exclude": list(request.exclude)}
    if isinstance(request.method, Mapping):
        patterns["method"] = list(request.method)
        left = [path for path in shapes if matched(path, request.method) is None]
        if left:
            found.append(
                f"method: expected a pattern for every leaf, got none for "
                f'{len(left)} of {len(shapes)}, such as {left[0]}; end with "*"'
            )
    found += [
        f'{name}: pattern "{pattern}" matches no leaf{paths.did_you_mean(pattern, shapes)}'
        for name, given in patterns.items()
        for pattern in given
        if not any(is_like(path, pattern) for path in shapes)
    ]
    if request.vectors not in VECTORS:
        kinds = ", ".join(f'"{kind}"' for kind in VECTORS)
        found.append(f"vectors: expected one of {kinds}, got {request.vectors!r}")
    if request.calibrate not in (None, "svc"):
        found.append(f'calibrate: expected None or "svc", got {request.calibrate!r}')
    elif request.calibrate and request.base is None:
        found.append("base: expected one to calibrate against, got None")
    alpha = request.calibrate_alpha
    if alpha is not None and not Number(0, above=True).holds(alpha):
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
            f"{where}: expected matrices of at least {models} rows and columns for tsv "
            f"with {models} models, got {_counted(len(small), 'smaller leaf', 'smaller leaves')}:\n"
            f"{paths.listed(small)}\nGive them another method: "
            'method={"PATTERN": "task_arithmetic", "*": "tsv"}, or set rank.'
        )


def _differences(
    first: str, leaves: Mapping[str, Any], name: str, other: Mapping[str, Any]
) -> list[str]:
    found = [f"{name} lacks {path}" for path in leaves if path not in other]
    found += [f"{name} has {path}, {first} has not" for path in other if path not in leaves]
    for path in leaves.keys() & other.keys():
        ours, theirs = leaves[path], other[path]
        if np.shape(ours) != np.shape(theirs) or is_float(ours) != is_float(theirs):
            found.append(f"{path} is {_kind(ours)} in {first}, {_kind(theirs)} in {name}")
    return found


def _passed_twice(trees: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    seen: dict[tuple[int, ...], str] = {}
    for name, leaves in trees:
        identity = tuple(map(id, leaves.values()))
        if identity and identity in seen:
            return [seen[identity], name]
        seen[identity] = name
    return []


def _kind(leaf: Any) -> str:
    return f"{jnp.result_type(getattr(leaf, 'dtype', leaf))}{list(np.shape(leaf))}"


def _counted(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _refused(where: str, problems: Sequence[str]) -> str:
    if len(problems) == 1:
        return f"{where}: {problems[0]}. Correct it and call again."
    return (
        f"{where}: {len(problems)} arguments do not fit:\n"
        f"{paths.listed(problems, most=30)}\nCorrect them and call again."
    )
