"""Options: everything that decides a merge besides what is merged.

Each option is one field of `MergeOptions`. What recipes, plans, dumps and provenance
need to know of it stands beside its default, in an `Option`: a new option is a new
field, and the place where it is used.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jmudsc import paths
from jmudsc.matching.methods import Method, METHODS, TABLE
from jmudsc.matching.multi_model import REFERENCES
from jmudsc.merging.alpha_search import ALPHAS, CHOICES
from jmudsc.merging.contenders import (
    BEST,
    BEST_OF,
    contenders_to_try,
    methods_of,
    named,
)
from jmudsc.merging.held_out import HELD_OUT
from jmudsc.merging.option import Option, Outcome
from jmudsc.merging.option_rules import RULES
from jmudsc.merging.option_values import (
    above_zero,
    function,
    functions,
    MERGE,
    merge_or_number,
    model_weights,
    one_of,
    pairs_of_patterns,
    patterns,
    share_or,
    share_to_hold,
    shares_to_try,
    yes_or_no,
)
from jmudsc.repairs.least_squares import RIDGE
from jmudsc.repairs.mixing import SampleWeight, TARGETS
from jmudsc.repairs.table import clashes, names_of as repairs_of
from jmudsc.types import UpdateFn


@dataclass(frozen=True)
class MergeOptions:
    """The options of a merge, as `merge` takes them; what each is stands there too.

    Where `merge` takes one or several of something, a tuple stands here (`as_tuple`).
    `checked` says what is wrong with them.
    """

    update_fn: UpdateFn | Sequence[UpdateFn] | None = field(
        default=None,
        metadata=Option(
            "resets running statistics as training does",
            functions,
            in_recipe="import path",
        ).metadata,
    )
    method: str = field(
        default="mudsc-zip",
        metadata=Option(
            "how units are matched and averaged",
            one_of((*METHODS, BEST)),
            is_dumped=lambda options: True,
            recorded=lambda options, outcome: (
                {"method": options.method}
                if outcome.chosen is None
                else {
                    "method": options.method,
                    "chosen": outcome.chosen,
                    "tried": dict(outcome.tried),
                }
            ),
        ).metadata,
    )
    among: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "the merges that method best tries, by their names",
            contenders_to_try,
        ).metadata,
    )
    alpha: float | str = field(
        default=0.5,
        metadata=Option(
            "the balance, share of the weight similarity, or how it is searched for",
            share_or(CHOICES, "It is the share of the weight similarity."),
            is_dumped=lambda options: True,
            recorded=lambda options, outcome: {"alpha": outcome.alpha},
        ).metadata,
    )
    weights: tuple[float, ...] | None = field(
        default=None,
        metadata=Option(
            "the share of each model in the average",
            model_weights,
            recorded=lambda options, outcome: {"weights": list(outcome.shares)},
        ).metadata,
    )
    check: bool = field(
        default=True,
        metadata=Option(
            "whether the spec is checked by a random permutation",
            yes_or_no,
            in_recipe=None,
            recorded=lambda options, outcome: (
                {} if options.check else {"checked": False}
            ),
        ).metadata,
    )
    score: Callable[[Any], float] | None = field(
        default=None,
        metadata=Option(
            "what makes one network better than another",
            function,
            in_recipe="import path",
        ).metadata,
    )
    alphas: tuple[float, ...] = field(
        default=ALPHAS,
        metadata=Option(
            "the balances that a search tries",
            shares_to_try,
            in_recipe=None,
            recorded=lambda options, outcome: (
                {
                    "balance": options.alpha,
                    "scores": {f"{x:g}": y for x, y in outcome.scores},
                }
                if options.is_searched
                else {}
            ),
        ).metadata,
    )
    held_out: float | None = field(
        default=HELD_OUT,
        metadata=Option(
            "the share of the batches that a merge is judged on and not made from",
            share_to_hold,
        ).metadata,
    )
    frozen: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "labels and leaves whose units stay in place",
            patterns,
        ).metadata,
    )
    separate: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "leaves that every model keeps for itself",
            patterns,
        ).metadata,
    )
    alike: tuple[tuple[str, str], ...] = field(
        default=(),
        metadata=Option(
            "leaves that apply_fn does not read, and what they move like",
            pairs_of_patterns,
        ).metadata,
    )
    reference: str = field(
        default="first",
        metadata=Option(
            "what more than two models are aligned to",
            one_of(REFERENCES),
            recorded=lambda options, outcome: (
                {"reference": options.reference} if len(outcome.shares) > 2 else {}
            ),
        ).metadata,
    )
    refit: str | None = field(
        default=None,
        metadata=Option(
            "how linear layers are fitted after averaging",
            one_of(repairs_of("refit")),
        ).metadata,
    )
    ridge: float = field(
        default=RIDGE,
        metadata=Option(
            "strength of the refit's penalty",
            above_zero(f"Try {RIDGE}."),
            is_dumped=lambda options: options.refit is not None,
            recorded=lambda options, outcome: (
                {"ridge": options.ridge} if options.refit else {}
            ),
        ).metadata,
    )
    owners: tuple[int, ...] | None = field(
        default=None,
        metadata=Option(
            "for each batch the model whose task it is from",
            in_recipe=None,
            recorded=lambda options, outcome: _batches_per_model(
                options.owners, len(outcome.shares)
            ),
        ).metadata,
    )
    target: str | None = field(
        default=None,
        metadata=Option(
            "whom a refit follows on each sample",
            one_of(TARGETS),
        ).metadata,
    )
    sample_weight: SampleWeight | None = field(
        default=None,
        metadata=Option(
            "how much each sample counts in a refit",
            function,
            in_recipe="import path",
        ).metadata,
    )
    only: tuple[str, ...] = field(
        default=(),
        metadata=Option(
            "the leaves that are refit",
            patterns,
        ).metadata,
    )
    start: str | int = field(
        default=MERGE,
        metadata=Option(
            "what a refit starts from: the merge, or the number of a parent",
            merge_or_number,
        ).metadata,
    )
    repair: str | None = field(
        default=None,
        metadata=Option(
            "how statistics of units are repaired after averaging",
            one_of(repairs_of("repair")),
        ).metadata,
    )

    @property
    def rows(self) -> tuple[Method, ...]:
        """The methods that are tried: one, or those of `best`."""
        tried = methods_of(self.among) or BEST_OF
        names = tried if self.method == BEST else (self.method,)
        return tuple(TABLE[name] for name in names)

    @property
    def is_searched(self) -> bool:
        """Whether alpha is searched for."""
        return isinstance(self.alpha, str)

    @property
    def balances(self) -> tuple[float, ...]:
        """The values of alpha that are tried."""
        return self.alphas if isinstance(self.alpha, str) else (self.alpha,)

    @property
    def needs_all_models(self) -> bool:
        """Whether all models must be in memory at once, wherever they are."""
        several = self.is_searched or self.method == BEST
        return bool(self.refit or self.repair or self.separate or several)

    def problems(self) -> list[str]:
        """Say all that is wrong with the options, one sentence each.

        What only models and batches tell is not looked at here.
        """
        wrong = []
        for each in dataclasses.fields(self):
            value, read = getattr(self, each.name), OPTIONS[each.name].read
            if read is None or (value is None and each.default is None):
                continue
            try:
                read(value)
            except ValueError as error:
                wrong.append(f"{each.name}: {error}")
        if wrong:
            return wrong
        wrong = [*filter(None, (rule(self) for rule in RULES)), *clashes(self)]
        return wrong or [
            f'among: "{name}" cannot be made. {problem}'
            for name, options in named(self)
            for problem in options.problems()
        ]

    def checked(self, where: str) -> "MergeOptions":
        """Return these options, once it is known that nothing is wrong with them.

        Args:
            where: the caller, named in the error.

        Raises:
            ValueError: listing all that is wrong.
        """
        raise_all(where, self.problems())
        return self


def raise_all(where: str, problems: Sequence[str]) -> None:
    """Raise one error for all problems, if there are any.

    Args:
        where: the caller, named in the error.
        problems: one sentence each.

    Raises:
        ValueError: if there are some.
    """
    if len(problems) == 1:
        raise ValueError(f"{where}: {problems[0]}")
    if problems:
        raise ValueError(
            f"{where}: {len(problems)} options are wrong:\n{paths.listed(problems, 30)}"
        )


# What is known of each option, in the order of the fields.
OPTIONS: dict[str, Option] = {
    each.name: each.metadata["option"] for each in dataclasses.fields(MergeOptions)
}


def dumped(options: MergeOptions) -> dict[str, Any]:
    """Return the options that a recipe writes down as plain values, as YAML has them.

    Args:
        options: the options.

    Returns:
        Option -> value, without functions and without what makes no difference.
    """
    return {
        name: _plain(getattr(options, name))
        for name, option in OPTIONS.items()
        if option.in_recipe == "value" and _is_dumped(options, name)
    }


def recorded(options: MergeOptions, outcome: Outcome) -> dict[str, Any]:
    """Return what provenance tells of a merge: plain JSON values.

    Args:
        options: the options.
        outcome: what came of them.

    Returns:
        The entries of all options, those without a part in this merge left out.
    """
    told: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        if option.recorded:
            told |= option.recorded(options, outcome)
        elif option.in_recipe == "value" and not _is_default(options, name):
            told[name] = _plain(getattr(options, name))
    return told


def _is_dumped(options: MergeOptions, name: str) -> bool:
    is_dumped = OPTIONS[name].is_dumped
    return is_dumped(options) if is_dumped else not _is_default(options, name)


def _is_default(options: MergeOptions, name: str) -> bool:
    return getattr(options, name) == getattr(MergeOptions(), name)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _batches_per_model(owners: Sequence[int] | None, models: int) -> dict[str, Any]:
    if not owners:
        return {}
    return {"batches per model": [owners.count(number) for number in range(models)]}
