"""mergekit methods: which of them there are here, and their parameters, a row each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

# What a parameter is read by: its value -> the value here.
Value = Callable[[Any], Any]


def number(value: Any) -> float:
    """Read a number; YAML takes 1e-5 for text."""
    if isinstance(value, bool) or not isinstance(value, float | int | str):
        raise ValueError
    return float(value)


def whole(value: Any) -> int:
    """Read a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def flag(value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ValueError
    return value


def _only(wanted: bool) -> Value:
    def read(value: Any) -> None:
        if value is not wanted:
            raise ValueError

    return read


def _rescale(value: Any) -> str | None:
    return "l1" if flag(value) else None


@dataclass(frozen=True)
class Parameter:
    """One parameter of mergekit.

    Attributes:
        name: what mergekit calls it.
        here: the option that it is here; None for one that changes nothing here.
        expected: what its values are, for errors.
        value: reads one.
        default: what it is in mergekit where it is not given, in the values of here.
        per_model: whether each model has its own.
        is_one: whether the models' own must be one value here.
        needed: whether it must be given.
    """

    name: str
    here: str | None
    expected: str = "a number"
    value: Value = number
    default: Any = None
    per_model: bool = False
    is_one: bool = False
    needed: bool = False


@dataclass(frozen=True)
class Translation:
    """A method of mergekit, and what it is here.

    Attributes:
        here: the method.
        parameters: those it has in mergekit.
        base: what `base_model` is: the base that is `needed`, or may be (`optional`);
            one of the `models` like all others; the `first` of them.
        settings: options that are always set so here.
        most: how many models there may be, if that is not told here.
    """

    here: str
    parameters: tuple[Parameter, ...]
    base: Literal["needed", "optional", "models", "first"]
    settings: Mapping[str, Any] | None = None
    most: int | None = None


def _flag(name: str, here: str | None, default: bool | None = None) -> Parameter:
    return Parameter(name, here, "true or false", flag, default)


_WEIGHT = Parameter("weight", "weight", per_model=True, needed=True)
_DENSITY = Parameter("density", "density", default=1.0, per_model=True)
_LAMBDA = Parameter("lambda", "lambda_", default=1.0)
_MASK = _flag("int8_mask", None)
_NO_RESCALE = Parameter("rescale", None, "false", _only(False))
_RESCALE = Parameter("rescale", "rescale", "true or false", _rescale, "l1")
_GAMMA = Parameter("gamma", "gamma", default=0.01, per_model=True, is_one=True)
_EPSILON = Parameter("epsilon", "epsilon", default=0.15, per_model=True, is_one=True)


def _task_arithmetic(here: str, normalize: bool, *own: Parameter) -> Translation:
    shared = _WEIGHT, _flag("normalize", "normalize", normalize), _LAMBDA, _MASK
    return Translation(here, (*shared, *own), "needed")


# By what mergekit calls them. Its methods that are not here have no row.
METHODS: Mapping[str, Translation] = {
    "linear": Translation(
        "linear", (_WEIGHT, _flag("normalize", "normalize", True)), "models"
    ),
    "slerp": Translation("slerp", (Parameter("t", "t", needed=True),), "first"),
    "nuslerp": Translation(
        "nuslerp",
        (
            _WEIGHT,
            _flag("nuslerp_flatten", "flatten", True),
            Parameter("nuslerp_row_wise", None, "false", _only(False)),
        ),
        "optional",
    ),
    "karcher": Translation(
        "karcher",
        (
            Parameter("max_iter", "max_iter", "a whole number", whole, 10),
            Parameter("tol", "tol", default=1e-5),
        ),
        "models",
    ),
    "model_stock": Translation(
        "model_stock", (_flag("filter_wise", "filter_wise", False),), "needed"
    ),
    "task_arithmetic": _task_arithmetic(
        "task_arithmetic",
        False,
        Parameter("density", None, default=1.0, per_model=True),
        _flag("rescale", None),
    ),
    "ties": _task_arithmetic("ties", True, _DENSITY, _NO_RESCALE),
    "dare_linear": _task_arithmetic("dare_linear", False, _DENSITY, _RESCALE),
    "dare_ties": _task_arithmetic("dare_ties", False, _DENSITY, _RESCALE),
    "breadcrumbs": _task_arithmetic(
        "breadcrumbs", False, _DENSITY, _GAMMA, _NO_RESCALE
    ),
    "breadcrumbs_ties": _task_arithmetic(
        "breadcrumbs_ties", False, _DENSITY, _GAMMA, _NO_RESCALE
    ),
    "della": _task_arithmetic("della", True, _DENSITY, _EPSILON, _RESCALE),
    "della_linear": _task_arithmetic(
        "della_linear", False, _DENSITY, _EPSILON, _RESCALE
    ),
    "sce": Translation(
        "sce", (Parameter("select_topk", "select_topk", default=1.0), _MASK), "needed"
    ),
    "passthrough": Translation(
        "linear",
        (Parameter("scale", "weight", default=1.0, per_model=True),),
        "models",
        {"normalize": False},
        most=1,
    ),
}
