"""Comparison: several merges of the same models, beside what went into them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jmudsc.merging.figures import Figures
from jmudsc.merging.verdict import MERGED, told, Verdict
from jmudsc.paths import plural
from jmudsc.tables import table

_HINT = (
    "Margin and answer: beside the best single parent, in score where there is one,",
    "else in cosine. Agree: share of the largest outputs that are the same. Task:",
    "cosine on the samples of one parent. The best of many is in part the luckiest:",
    "judge it once more on data that nothing was chosen by.",
)


@dataclass(frozen=True)
class Comparison:
    """How several merges compare, on the same samples.

    Attributes:
        best: the name of what is best: of a merge, or of the best single parent.
        as_good: the other merges that are no worse than it by more than the standard
            error of the difference.
        verdicts: the name of each merge -> its verdict.

    Example:
        >>> Comparison("parent 0", (), {}).verdicts
        {}
    """

    best: str
    as_good: tuple[str, ...]
    verdicts: Mapping[str, Verdict]

    @property
    def networks(self) -> Mapping[str, Figures | None]:
        """The parents, their average, their ensemble and all merges, by name."""
        found = {}
        for name, verdict in self.verdicts.items():
            found = {**verdict.networks, **found, name: verdict.networks[MERGED]}
        return {name: each for name, each in found.items() if name != MERGED}

    @property
    def sentence(self) -> str:
        """What is best, in one sentence."""
        first = next(iter(self.verdicts.values()))
        samples = "sample" if not first.is_held_out else "held-out sample"
        by = first.decided_by
        also = ""
        if self.as_good:
            verb = "is" if len(self.as_good) == 1 else "are"
            also = f", and within one standard error of it {verb} " + ", ".join(
                self.as_good
            )
        return (
            f"On {plural(first.samples, samples)} the best of "
            f"{plural(len(self.verdicts), 'merge')} and all parents is {self.best} "
            f"({by} {told(self.networks[self.best], by)}){also}."
        )

    @property
    def table(self) -> str:
        """All of it as a table in Markdown, with what its columns are."""
        networks = self.networks
        verdict = next(iter(self.verdicts.values()))
        tasks = max((len(each.own) for each in networks.values() if each), default=0)
        figure = "agreement" if verdict.decided_by == "cosine" else "score"
        header = ["network", "agree" if figure == "agreement" else figure, "cosine"]
        header += [f"task {number}" for number in range(tasks)]
        rows = [
            [name, *_cells(networks[name], figure, tasks), *self._answer(name)]
            for name in networks
        ]
        return "\n".join([table([*header, "margin", "answer"], rows), "", *_HINT])

    def __str__(self) -> str:
        return f"{self.sentence}\n\n{self.table}"

    def _answer(self, name: str) -> tuple[str, str]:
        verdict = self.verdicts.get(name)
        return ("-", "-") if verdict is None else _answer_of(verdict)


def _answer_of(verdict: Verdict) -> tuple[str, Literal["better", "equal", "worse"]]:
    return f"{verdict.margin:+.3f}", verdict.answer


def _cells(figures: Figures | None, figure: str, tasks: int) -> list[str]:
    if figures is None:
        return ["-"] * (2 + tasks)
    own = [*figures.own, *[None] * (tasks - len(figures.own))]
    values = (getattr(figures, figure), figures.cosine, *own)
    return ["-" if value is None else f"{value:.3f}" for value in values]
