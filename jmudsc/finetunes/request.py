"""Request: what a user asks of a merge of fine-tunes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.task_batches import TaskBatches
from jmudsc.lazy import to_device
from jmudsc.merging.option_values import as_tuple
from jmudsc.merging.separate import trunks_of
from jmudsc.progress import Progress
from jmudsc.repairs.least_squares import RIDGE
from jmudsc.types import UpdateFn

# The scales that a search tries.
LAMBDAS = tuple(tenth / 10 for tenth in range(1, 16))


@dataclass(frozen=True)
class Repairs:
    """What is to be mended after merging: options by the names that repairs have.

    Attributes:
        update_fn: resets running statistics as training does; one or one per model.
        refit: `least-squares` or None.
        repair: `rescale`, `pooled` or None.
        ridge: of the refit.
        owners: for each batch the model of whose task it is.
    """

    update_fn: UpdateFn | Sequence[UpdateFn] | None = None
    refit: str | None = None
    repair: str | None = None
    ridge: float = RIDGE
    owners: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Common:
    """Options that all methods have.

    Attributes:
        exclude: patterns of leaves that are taken from the base as they are.
        axes: pattern of leaves -> letters of their axes.
        vectors: what leaves become that hold no matrix, where matrices are merged.
        calibrate: `svc` or None.
        calibrate_alpha: the least share of a model that it counts; None for that of
            the method.
        owners: for each batch the model of whose task it is.
        score: larger for better variables.
        lambdas: the scales that a search tries.
        separate: patterns of leaves that every model keeps its own of.
        update_fn: resets running statistics as training does.
        refit: `least-squares` or None.
        refit_ridge: strength of its penalty.
        repair: `rescale`, `pooled` or None.
        check: whether to look if the base is probably a wrong one.
        progress: told what is being done.
    """

    exclude: str | Iterable[str] = ()
    axes: Mapping[str, str] = field(default_factory=dict)
    vectors: str = "average"
    calibrate: str | None = None
    calibrate_alpha: float | int | None = None
    owners: Sequence[int] | None = None
    score: Callable[[PyTree], float] | None = None
    lambdas: Sequence[float | int] = LAMBDAS
    separate: str | Iterable[str] = ()
    update_fn: UpdateFn | Sequence[UpdateFn] | None = None
    refit: str | None = None
    refit_ridge: float = RIDGE
    repair: str | None = None
    check: bool = True
    progress: Progress | None = None

    @property
    def excluded(self) -> list[str]:
        """The patterns of what is excluded."""
        return list(as_tuple(self.exclude))

    @property
    def separated(self) -> tuple[str, ...]:
        """The patterns of what every model keeps its own of."""
        return as_tuple(self.separate)

    @property
    def repairs(self) -> Repairs:
        """What is to be mended, as repairs take it."""
        owners = None if self.owners is None else tuple(self.owners)
        return Repairs(
            self.update_fn, self.refit, self.repair, self.refit_ridge, owners
        )


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked for.

    Attributes:
        models: the variables of each model.
        base: those of the base; None without one.
        method: the name of a method, or patterns of leaves with names.
        options: option of the method, `weight` and `lambda_` among them -> setting.
        common: the options that all methods have.
        apply_fn: `(variables, batch) -> outputs`, if it is given; where leaves are
            separate also one for each model.
        tasks: the batches, if there are any.
        key: what random numbers are drawn from.
    """

    models: Sequence[PyTree]
    base: PyTree | None = None
    method: str | Mapping[str, str] = "task_arithmetic"
    options: Mapping[str, Any] = field(default_factory=dict)
    common: Common = field(default_factory=Common)
    apply_fn: Any = None
    tasks: TaskBatches | None = None
    key: Any = None

    @property
    def donor(self) -> PyTree:
        """The base, or the first model without one."""
        return self.models[0] if self.base is None else self.base

    @property
    def first_fn(self) -> Any:
        """The function of the first model."""
        fns = self.apply_fn
        return fns[0] if isinstance(fns, Sequence) else fns

    @property
    def lambda_(self) -> Any:
        """The scale that was asked for; None for that of the method."""
        return self.options.get("lambda_")


def parted(options: Mapping[str, Any]) -> tuple[Common, dict[str, Any]]:
    """Part options that all methods have from those of some."""
    names = {each.name for each in fields(Common)}
    common = {name: value for name, value in options.items() if name in names}
    own = {name: value for name, value in options.items() if name not in names}
    return Common(**common), own


def in_memory(request: Request) -> Request:
    """Return a request whose trees are read from where they are."""
    base = None if request.base is None else to_device(request.base)
    models = [to_device(model) for model in request.models]
    return replace(request, models=models, base=base)


def trunk_of(where: str, request: Request) -> Request:
    """Return a request of the leaves that are merged, by path if some are not.

    Args:
        where: the caller, named in errors.
        request: of whole models.

    Raises:
        ValueError: if a pattern of separate leaves matches none, or all.
    """
    patterns = request.common.separated
    if not patterns:
        return request
    trunks = trunks_of(where, request.models, patterns)
    base = None
    if request.base is not None:
        leaves = paths.flatten(request.base).items()
        base = {path: x for path, x in leaves if not paths.matches(path, patterns)}
    return replace(request, models=trunks, base=base)
