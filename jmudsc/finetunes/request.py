"""Request: what a user asks of a merge of fine-tunes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.finetunes.task_batches import TaskBatches
from jmudsc.progress import Progress
from jmudsc.types import ApplyFn

# The scales that a search tries.
LAMBDAS = tuple(tenth / 10 for tenth in range(1, 16))


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
    check: bool = True
    progress: Progress | None = None

    @property
    def excluded(self) -> list[str]:
        """The patterns of what is excluded."""
        if isinstance(self.exclude, str):
            return [self.exclude]
        return list(self.exclude)


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked for.

    Attributes:
        models: the variables of each model.
        base: those of the base; None without one.
        method: the name of a method, or patterns of leaves with names.
        options: option of the method, `weight` and `lambda_` among them -> setting.
        common: the options that all methods have.
        apply_fn: `(variables, batch) -> outputs`, if it is given.
        tasks: the batches, if there are any.
        key: what random numbers are drawn from.
    """

    models: Sequence[PyTree]
    base: PyTree | None = None
    method: str | Mapping[str, str] = "task_arithmetic"
    options: Mapping[str, Any] = field(default_factory=dict)
    common: Common = field(default_factory=Common)
    apply_fn: ApplyFn | None = None
    tasks: TaskBatches | None = None
    key: jax.Array | None = None

    @property
    def donor(self) -> PyTree:
        """The base, or the first model without one."""
        return self.models[0] if self.base is None else self.base

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
