"""Verdict: whether a merged network is worth having beside what went into it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from jmudsc.merging.figures import Figures
from jmudsc.paths import plural

MERGED, AVERAGE, ENSEMBLE = "merged", "average", "ensemble"

_WORDS = {"better": "better than", "equal": "as good as", "worse": "worse than"}


def parent_name(number: int) -> str:
    """Return what a parent is called among the networks of a verdict."""
    return f"parent {number}"


@dataclass(frozen=True)
class Verdict:
    """How a merged network compares with what went into it.

    What a sample should get is the output of its owner, the parent whose task its batch
    is from; without owners the mean of the parents weighted by their sureness. Where
    leaves are separate, a parent stands for its trunk with the heads of all models.

    Attributes:
        answer: whether the merged network is better for all tasks together than the
            best single parent, worse, or equal: the difference is no more than one
            standard error. By score alone where there is one.
        best_parent: the number of that parent.
        margin: by how much it is better, in score or in cosine.
        chance: the standard error of the margin; 0 for a score, of which none is known.
        networks: `merged`, `parent 0` and so on, `average` (the plain one, nothing
            matched) and `ensemble` (the mean of the parents' outputs) -> figures; None
            for a network whose outputs are not finite.
        decided_by: which of the figures decided.
        samples: how many samples the networks were compared on.
        batches: how many batches these are from.
        is_held_out: whether the merge was made without these batches. If not, a refit
            looks better than it is.
    """

    answer: Literal["better", "equal", "worse"]
    best_parent: int
    margin: float
    chance: float
    networks: Mapping[str, Figures | None]
    decided_by: Literal["score", "cosine"]
    samples: int
    batches: int
    is_held_out: bool

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        samples = plural(self.samples, "sample")
        where = f"{samples} that it was made from"
        if self.is_held_out:
            where = f"{plural(self.samples, 'held-out sample')}"
        best = parent_name(self.best_parent)
        return (
            f"On {where} the merged network is {_WORDS[self.answer]} the best single "
            f"parent, {best}, for all tasks together ({self.decided_by} "
            f"{self._told(MERGED)} against {self._told(best)}){self._of_tasks()}"
            f"{self._of_ensemble()}."
        )

    @property
    def short(self) -> str:
        """The verdict in a few words."""
        best = parent_name(self.best_parent)
        samples = plural(self.samples, "sample")
        return (
            f"{_WORDS[self.answer]} {best}, the best alone ({self.decided_by} "
            f"{self._told(MERGED)}, {self._told(best)}; {samples})"
        )

    def plain(self) -> dict[str, Any]:
        """The verdict as plain JSON values."""
        networks = {n: f and asdict(f) for n, f in self.networks.items()}
        for figures in filter(None, networks.values()):
            figures["own"] = list(figures["own"])
        return {**asdict(self), "networks": networks, "sentence": self.sentence}

    def _told(self, name: str) -> str:
        return told(self.networks[name], self.decided_by)

    def _of_tasks(self) -> str:
        merged = self.networks[MERGED]
        known = merged.own if merged else ()
        if not known or all(value is None for value in known):
            return ""
        told = ", ".join("-" if x is None else f"{x:.3f}" for x in known)
        return f", follows each parent on its own task (cosine {told})"

    def _of_ensemble(self) -> str:
        merged, ensemble = self.networks[MERGED], self.networks.get(ENSEMBLE)
        if merged is None or ensemble is None:
            return ""
        gap = merged.cosine - ensemble.cosine
        place = "above" if gap >= 0 else "below"
        return f", and is {abs(gap):.3f} {place} the ensemble in cosine"


def told(figures: Figures | None, decided_by: str) -> str:
    """Tell the figure by which networks are compared.

    Args:
        figures: of a network; None if an output is not finite.
        decided_by: which figure that is, `"cosine"` or `"score"`.
    """
    value = figures and getattr(figures, decided_by)
    return "not finite" if value is None else f"{value:.3f}"


def advice_of(verdict: Verdict, is_refit: bool) -> str | None:
    """Say what to do about a merge that is worse than a parent.

    Args:
        verdict: of the merge.
        is_refit: whether it was refit already.

    Returns:
        A sentence; None for a merge that is no worse.
    """
    if verdict.answer != "worse":
        return None
    more = "" if is_refit else "a refit, "
    return (
        f'Use that parent alone, or try {more}more batches, or method="best", which '
        "is never below it there."
    )
