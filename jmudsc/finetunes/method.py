"""Method: what there is to know of one way to merge fine-tunes, a row of the table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jmudsc.finetunes.matrix_work import Work
from jmudsc.finetunes.option import Option
from jmudsc.finetunes.piece import Entries, Rule

# (option -> setting, number of models) -> lines that say what does not go together.
Check = Callable[[dict[str, Any], int], list[str]]


def no_problems(options: dict[str, Any], models: int) -> list[str]:
    """Find nothing wrong."""
    return []


@dataclass(frozen=True)
class Method:
    """One way to merge fine-tunes.

    Attributes:
        name: what it is called.
        about: what it does, a sentence.
        rule: what it makes of a piece: what is added to the base, or, where there is
            none, what the piece becomes. None for a method that changes whole trees.
        cuts: whether a rule is given runs of entries, or matrices; with `matrices` all
            other leaves are averaged.
        base: whether it needs a base, can use one, or takes only other leaves from it.
        options: what can be set.
        aliases: its other names.
        fewest: how many models it needs.
        most: how many models it takes; None for any number.
        lambda_: the scale of what is added to the base; None if it has none.
        calibration: the least share of a model that `calibrate="svc"` counts after it.
        is_random: whether it draws numbers.
        learns: what it must know before any leaf is merged: `thresholds` of the whole
            tree, the second moments of `inputs`, or `gradients`.
        runs: what it does to whole networks in place of a rule: `greedy` evaluates
            them, `layers` follows the data through them.
        by_column: an option and its value with which each column of a matrix counts by
            itself.
        vectors: what merges leaves that hold no matrix, where a method by matrix knows
            more of them than to average.
        is_elementwise: whether a rule looks at each entry by itself, so that a leaf can
            be merged part by part in a fast cache.
        measures: what a rule must know of all entries of a run first, for its evidence.
        work: about how many operations its linear algebra takes, by matrix.
        check: finds options that do not go together.
    """

    name: str
    about: str
    rule: Rule | None
    cuts: Literal["runs", "matrices"] = "runs"
    base: Literal["needed", "optional", "unused"] = "needed"
    options: tuple[Option, ...] = ()
    aliases: tuple[str, ...] = ()
    fewest: int = 1
    most: int | None = None
    lambda_: float | None = 1.0
    calibration: float = 0.1
    is_random: bool = False
    learns: Literal["thresholds", "inputs", "gradients"] | None = None
    runs: Literal["greedy", "layers"] | None = None
    by_column: tuple[str, bool] | None = None
    vectors: Rule | None = None
    is_elementwise: bool = False
    measures: Callable[[Entries], Mapping[str, Any]] | None = None
    work: Work | None = None
    check: Check = no_problems

    @property
    def needs_data(self) -> bool:
        """Whether it needs a function and batches."""
        return self.learns in ("inputs", "gradients") or self.runs == "layers"

    @property
    def by_name(self) -> Mapping[str, Option]:
        """Its options by their names."""
        return {option.name: option for option in self.options}
