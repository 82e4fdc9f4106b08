"""Request: what a user asks of a merge of fine-tunes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.options import Common
from jmudsc.finetunes.task_batches import TaskBatches
from jmudsc.lazy import to_device
from jmudsc.merging.separate import trunks_of


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
