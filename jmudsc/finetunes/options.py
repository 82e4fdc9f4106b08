"""Options: everything that decides a merge of fine-tunes besides what is merged.

Options that all methods have are fields of `Common`, each with what recipes and plans
need to know of it. Those of a method are in its row; what was given for them are the
settings.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.lambda_search import lambda_problems
from jmudsc.finetunes.leafwise import LAMBDA, VECTORS
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.methods import FINETUNE_METHODS, method_of, method_problems
from jmudsc.finetunes.settings import problems_of
from jmudsc.merging.option_values import (
    above_zero,
    as_tuple,
    function,
    functions,
    is_number,
    listing,
    one_of,
    quoted,
    yes_or_no,
)
from jmudsc.merging.options import Option
from jmudsc.progress import Progress
from jmudsc.repairs.least_squares import RIDGE
from jmudsc.repairs.table import names_of as repairs_of
from jmudsc.types import UpdateFn

_log = logging.getLogger(__name__)

# The scales that a search tries.
LAMBDAS = tuple(tenth / 10 for tenth in range(1, 16))
# What mergekit calls options, and what it has that makes no difference here.
SPELLINGS = {"lambda": "lambda_"}
IGNORED = ("int8_mask",)


def leaf_patterns(value: Any) -> tuple[str, ...]:
    """Read a pattern of leaves, or several."""
    several = as_tuple(value)
    good = isinstance(several, tuple)
    if not good or not all(text and isinstance(text, str) for text in several):
        raise ValueError(
            f"expected a pattern of leaves, or a list of some, got {listing(value)}. "
            "Put each pattern in quotes."
        )
    return several


def axis_letters(value: Any) -> dict[str, str]:
    """Read letters of axes by patterns of leaves."""
    pairs = value.items() if isinstance(value, Mapping) else ()
    good = all(isinstance(text, str) for pair in pairs for text in pair)
    if not isinstance(value, Mapping) or not good:
        raise ValueError(
            "expected a mapping of patterns of leaves to a letter for each axis, got "
            f'{quoted(value)}. Write it as {{"*/mixer/kernel": "lio"}}.'
        )
    return dict(value)


def scales(value: Any) -> tuple[float, ...]:
    """Read one or more numbers."""
    good = isinstance(value, list | tuple) and all(map(is_number, value))
    if not good or not value:
        raise ValueError(
            f"expected one or more numbers, got {listing(value)}. Leave them out for "
            "0.1, 0.2, ..., 1.5."
        )
    return tuple(map(float, value))


@dataclass(frozen=True)
class Repairs:
    """What is to be mended after merging: options by the names that repairs have.

    Attributes:
        update_fn: resets running statistics as training does; one or one per model.
        refit: `least-squares` or None.
        repair: `rescale`, `pooled` or None.
        ridge: of the refit.
        owners: for each batch the model of whose task it is.
        target: whom the refit follows where there are no owners: all models alike.
    """

    update_fn: UpdateFn | Sequence[UpdateFn] | None = None
    refit: str | None = None
    repair: str | None = None
    ridge: float = RIDGE
    owners: tuple[int, ...] | None = None
    target: str | None = None


@dataclass(frozen=True)
class Common:
    """Options that all methods have, as `merge_finetunes` takes them."""

    exclude: str | Iterable[str] = field(
        default=(),
        metadata=Option(
            "leaves that are taken from the base as they are", leaf_patterns
        ).metadata,
    )
    axes: Mapping[str, str] = field(
        default_factory=dict,
        metadata=Option("which axes of leaves go in and out", axis_letters).metadata,
    )
    vectors: str = field(
        default="average",
        metadata=Option(
            "what leaves become that hold no matrix, where matrices are merged",
            one_of(VECTORS),
        ).metadata,
    )
    calibrate: str | None = field(
        default=None,
        metadata=Option(
            "how the directions of merged matrices are rescaled", one_of(("svc",))
        ).metadata,
    )
    calibrate_alpha: float | int | None = field(
        default=None,
        metadata=Option(
            "the least share of a model that a calibration counts",
            above_zero("Leave it out for that of the method."),
        ).metadata,
    )
    owners: Sequence[int] | None = field(
        default=None,
        metadata=Option(
            "for each batch the model of whose task it is", in_recipe=None
        ).metadata,
    )
    score: Callable[[PyTree], float] | None = field(
        default=None,
        metadata=Option(
            "what a search makes large", function, in_recipe="import path"
        ).metadata,
    )
    lambdas: Sequence[float | int] = field(
        default=LAMBDAS,
        metadata=Option("the scales that a search tries", scales).metadata,
    )
    separate: str | Iterable[str] = field(
        default=(),
        metadata=Option(
            "leaves that every model keeps its own of", leaf_patterns
        ).metadata,
    )
    update_fn: UpdateFn | Sequence[UpdateFn] | None = field(
        default=None,
        metadata=Option(
            "resets running statistics as training does",
            functions,
            in_recipe="import path",
        ).metadata,
    )
    refit: str | None = field(
        default=None,
        metadata=Option(
            "how linear layers are fitted after merging", one_of(repairs_of("refit"))
        ).metadata,
    )
    refit_ridge: float = field(
        default=RIDGE,
        metadata=Option(
            "strength of the refit's penalty", above_zero(f"Try {RIDGE}.")
        ).metadata,
    )
    repair: str | None = field(
        default=None,
        metadata=Option(
            "how statistics of units are repaired after merging",
            one_of(repairs_of("repair")),
        ).metadata,
    )
    check: bool = field(
        default=True,
        metadata=Option(
            "whether to warn of a base that is probably a wrong one", yes_or_no
        ).metadata,
    )
    progress: Progress | None = field(
        default=None,
        metadata=Option("told what is being done", in_recipe=None).metadata,
    )

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
        target = "ensemble" if owners is None else None
        return Repairs(
            self.update_fn, self.refit, self.repair, self.refit_ridge, owners, target
        )


# What is known of each option that all methods have, in the order of the fields.
COMMON: dict[str, Option] = {
    each.name: each.metadata["option"] for each in dataclasses.fields(Common)
}
# The names of all options that some method has, its scale included.
METHOD_OPTIONS = tuple(
    dict.fromkeys(
        ["lambda_", *(n for row in FINETUNE_METHODS.values() for n in row.by_name)]
    )
)


@dataclass(frozen=True)
class FinetuneOptions:
    """What decides a merge of fine-tunes.

    Attributes:
        method: the name of a method, or patterns of leaves with names.
        settings: option of the method, `weight` and `lambda_` among them -> what was
            given for it: a value, patterns of leaves with values, or lists.
        common: the options that all methods have.
    """

    method: str | Mapping[str, str] = "task_arithmetic"
    settings: Mapping[str, Any] = field(default_factory=dict)
    common: Common = field(default_factory=Common)

    @property
    def separate(self) -> tuple[str, ...]:
        """The patterns of what every model keeps its own of."""
        return self.common.separated

    def problems(self, models: int) -> list[str]:
        """Say what is wrong with method and settings, whatever leaves there are.

        Args:
            models: the number of models.
        """
        names = names_in(self.method)
        if wrong := [line for name in names for line in method_problems(name)]:
            return wrong
        methods = list(map(method_of, names))
        scale, lambdas = self.settings.get("lambda_"), self.common.lambdas
        return [
            *lambda_problems(scale, self.common.score is not None, lambdas),
            *setting_problems(methods, self.settings, models, None),
        ]


def names_in(method: Any) -> list[Any]:
    """Return the names of all methods that are asked for."""
    return list(method.values()) if isinstance(method, Mapping) else [method]


def parted(options: Mapping[str, Any]) -> tuple[Common, dict[str, Any]]:
    """Part options that all methods have from those of some."""
    common = {name: value for name, value in options.items() if name in COMMON}
    own = {name: value for name, value in options.items() if name not in COMMON}
    return Common(**common), own


def respelled(where: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names that options have here.

    Args:
        where: the caller, named in the log.
        settings: option, or what mergekit calls it -> setting. One that is given by
            both names keeps both, which is a problem of settings.
    """
    for name in IGNORED:
        if name in settings:
            _log.info("%s: %s makes no difference here, and is left out.", where, name)
    here = {old: new for old, new in SPELLINGS.items() if new not in settings}
    return {
        here.get(name, name): value
        for name, value in settings.items()
        if name not in IGNORED
    }


def setting_problems(
    methods: Iterable[Method],
    settings: Mapping[str, Any],
    models: int,
    leaves: list[str] | None,
) -> list[str]:
    """Return what is wrong with the settings of methods: nothing, or lines that say it.

    Args:
        methods: the rows.
        settings: option -> what was given for it.
        models: the number of models.
        leaves: the paths of all leaves; None if they are not known.
    """
    methods = list(methods)
    known = {name: option for m in methods for name, option in m.by_name.items()}
    if any(method.lambda_ is not None for method in methods):
        known["lambda_"] = LAMBDA
    found = []
    for name, setting in settings.items():
        if name == "lambda_" and name in known and isinstance(setting, str):
            continue  # one that is searched for
        if name in known:
            found += problems_of(known[name], setting, models, leaves)
        else:
            hint = paths.did_you_mean(name, known)
            takes = ", ".join(known) or "no options"
            found.append(
                f"{name}: expected one of {takes}, got {name}={setting!r}{hint}"
            )
    if not found:
        for method in methods:
            found += method.check(filled(method, settings), models)
    return found


def filled(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every option of a method is set to, its scale included."""
    found = {o.name: settings.get(o.name, o.default) for o in method.options}
    return found | {"lambda_": settings.get("lambda_", method.lambda_)}


def dumped(options: FinetuneOptions) -> dict[str, Any]:
    """Return the options that a recipe writes down as plain values, as YAML has them.

    Args:
        options: the options.

    Returns:
        Option -> value, without functions and without what makes no difference.
    """
    common, default = options.common, Common()
    given = {
        name: plain(getattr(common, name))
        for name, option in COMMON.items()
        if option.in_recipe == "value"
        and getattr(common, name) != getattr(default, name)
    }
    return {"method": plain(options.method), **plain(options.settings), **given}


def plain(value: Any) -> Any:
    """Return a setting in plain values, as YAML and JSON have them."""
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value.item() if hasattr(value, "item") else value
