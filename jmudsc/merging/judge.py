"""Judge: compares networks with the parents that they were made of."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Int, PyTree

from jmudsc.lazy import is_lazy, to_device
from jmudsc.merging.figures import (
    error_of_difference,
    Figures,
    figures_of,
    mean_of,
    quality,
    Sums,
    sums_of,
    Target,
    wanted_of,
)
from jmudsc.merging.heads import put_together
from jmudsc.merging.held_out import Picked, Split
from jmudsc.merging.prepare import Prepared
from jmudsc.merging.verdict import AVERAGE, ENSEMBLE, MERGED, parent_name, Verdict
from jmudsc.reordering.combine import combine
from jmudsc.reordering.permute import identity
from jmudsc.repairs.outputs import Outputs, outputs_of

# Differences in cosine that are no more than rounding.
_ROUNDING = 1e-5

Networks = Sequence[PyTree]
# What outputs should be, and the number of the parent whose task each sample is from.
Wanted = tuple[Target, Int[np.ndarray, " samples"]]


@dataclass(frozen=True)
class Measured:
    """What is known of one network, or of one per model where leaves are separate.

    Attributes:
        sums: what its figures are computed from; None if an output is not finite.
        score: what the user's function says of it; None without one.
    """

    sums: Sums | None
    score: float | None = None

    @property
    def quality(self) -> float:
        """By what it is compared: the score where there is one, else the cosine."""
        if self.score is not None:
            return self.score
        return -1.0 if self.sums is None else quality(self.sums)

    @property
    def figures(self) -> Figures | None:
        """Its figures; None if an output is not finite."""
        return None if self.sums is None else figures_of(self.sums, self.score)


@dataclass(frozen=True)
class Judge:
    """What networks are compared with, and on.

    Attributes:
        prepared: the models.
        split: the batches.
        wanted: what the outputs should be, of each network where leaves are separate.
        references: parents, plain average and ensemble, by their names in a verdict.
    """

    prepared: Prepared
    split: Split
    wanted: Sequence[Wanted]
    references: Mapping[str, Measured]

    def measured(self, networks: Networks) -> Measured:
        """Compare a network, or one per model where leaves are separate.

        Args:
            networks: the variables of each, lazy or not.
        """
        return _measured(self.prepared, self.split, self.wanted, networks)

    def best_parent(self) -> int:
        """Return the number of the best single parent for all tasks; the first such."""
        count = len(self.prepared.models)
        parents = [self.references[parent_name(number)] for number in range(count)]
        return int(np.argmax([parent.quality for parent in parents]))

    def is_as_good(self, one: Measured, other: Measured) -> bool:
        """Whether a network is no worse than another by more than chance.

        Args:
            one: from `measured`.
            other: what it is compared with.
        """
        margin, chance = _margin(one, other)
        return _answer(margin, chance) != "worse"

    def verdict(self, merged: Measured) -> Verdict:
        """Say how a merged network compares with what it was made of.

        Args:
            merged: from `measured`.
        """
        number = self.best_parent()
        parent = self.references[parent_name(number)]
        margin, chance = _margin(merged, parent)
        known = {MERGED: merged, **self.references}
        return Verdict(
            answer=_answer(margin, chance),
            best_parent=number,
            margin=margin,
            chance=chance,
            networks={name: each.figures for name, each in known.items()},
            decided_by="cosine" if merged.score is None else "score",
            samples=sum(len(tasks) for _, tasks in self.wanted),
            batches=sum(1 for _ in self.split.judged),
            is_held_out=self.split.is_held_out,
        )


def unjudged(prepared: Prepared, split: Split) -> str | None:
    """Say why nothing can be judged, as far as one knows before anything is run.

    Args:
        prepared: the models.
        split: the batches.

    Returns:
        A reason to go after "none, since"; None if there is none.
    """
    if prepared.options.held_out is None or split.used is None:
        return "no batches are held out"
    if jax.process_count() > 1:
        return "several processes each see a part of the batches"
    if is_lazy(prepared.models) and not any(
        r.activations for r in prepared.options.rows
    ):
        return "the models stay on disk"
    return None


def judge_of(prepared: Prepared, split: Split) -> Judge | str:
    """Run the parents over the batches that a merge is judged on.

    One network is in memory at a time, and its outputs are kept on the host.

    Args:
        prepared: the models.
        split: the batches.

    Returns:
        The judge; or why there is none: a reason to go after "none, since".

    Raises:
        ValueError: if there are fewer owners than batches.
    """
    if reason := unjudged(prepared, split):
        return reason
    outputs = [_outputs(prepared, split, n, m) for n, m in enumerate(prepared.models)]
    parents = [each for each in outputs if each is not None]
    if len(parents) < len(outputs):
        return "the outputs have no axis of samples that all batches agree on"
    if not all(np.isfinite(x).all() for parent in parents for x in parent.leaves):
        return "outputs of a parent are not finite"
    _check_owners(split, parents[0])
    wanted = _wanted(prepared, split, parents)
    references = _references(prepared, split, wanted, parents)
    return Judge(prepared, split, wanted, references)


def in_place(prepared: Prepared, trunk: PyTree) -> list[PyTree]:
    """Return the networks of a trunk whose units are where they are in the models.

    Args:
        prepared: the models.
        trunk: what is merged of a network.

    Returns:
        The trunk itself; where leaves are separate, one network per model, with the
        leaves that it has for itself.
    """
    if not prepared.options.separate:
        return [trunk]
    models, shares = prepared.models, prepared.shares
    return put_together(prepared.apart, models, trunk, _identity(prepared), shares)


def _check_owners(split: Split, outputs: Outputs) -> None:
    """Check that no batch that is judged on is without an owner."""
    seen, owners = int(outputs.batches.max()) + 1, split.owners_judged
    if owners is not None and len(owners) < seen:
        raise ValueError(
            f"merge: owners: expected one for each of {seen} batches or more, got "
            f"{len(owners)}. Count the batches of each task."
        )


def _wanted(
    prepared: Prepared, split: Split, parents: Sequence[Outputs]
) -> list[Wanted]:
    if not prepared.options.separate:
        return [wanted_of(parents, prepared.shares, split.owners_judged)]
    return [
        (each.leaves, np.full(each.count, number))
        for number, each in enumerate(parents)
    ]


def _references(
    prepared: Prepared,
    split: Split,
    wanted: Sequence[Wanted],
    parents: Sequence[Outputs],
) -> dict[str, Measured]:
    """Measure parents, plain average and ensemble."""
    count, found = len(parents), {}
    for number, model in enumerate(prepared.models):
        name = parent_name(number)
        if prepared.options.separate:
            networks = in_place(prepared, prepared.trunks[number])
            found[name] = _measured(prepared, split, wanted, networks)
        else:
            sums = sums_of(parents[number], *wanted[0], count)
            found[name] = Measured(sums, _score(prepared, [model]))
    plain = combine(
        prepared.spec, prepared.trunks, _identity(prepared), prepared.shares
    )
    networks = in_place(prepared, plain)
    found[AVERAGE] = _measured(prepared, split, wanted, networks)
    if not prepared.options.separate:
        mean = mean_of(parents, prepared.shares)
        found[ENSEMBLE] = Measured(sums_of(mean, *wanted[0], count))
    return found


def _measured(
    prepared: Prepared, split: Split, wanted: Sequence[Wanted], networks: Networks
) -> Measured:
    """Run networks over the batches and compare them with what is wanted."""
    sums: list[Any] = []
    for number, (network, each) in enumerate(zip(networks, wanted, strict=False)):
        outputs = _outputs(prepared, split, number, network)
        assert outputs is not None  # since those of the parents were there
        sums.append(sums_of(outputs, *each, len(prepared.models)))
    finite = all(each is not None for each in sums)
    joined = tuple(leaf for each in sums for leaf in each) if finite else None
    return Measured(joined, _score(prepared, networks))


def _outputs(
    prepared: Prepared, split: Split, number: int, network: PyTree
) -> Outputs | None:
    """Run one network over the batches; one with a head of its own over its own."""
    batches: Iterable[PyTree] = split.judged
    owners = split.owners_judged
    if prepared.options.separate and owners is not None:
        batches = Picked(batches, lambda batch: owners[batch] == number)
    return outputs_of(prepared.apply_fns[number], to_device(network), batches)


def _score(prepared: Prepared, networks: Networks) -> float | None:
    score = prepared.options.score
    if score is None:
        return None
    return float(score(list(networks) if prepared.options.separate else networks[0]))


def _identity(prepared: Prepared) -> dict[str, np.ndarray]:
    count = len(prepared.models)
    return {n: np.stack([row] * count) for n, row in identity(prepared.spec).items()}


def _margin(merged: Measured, parent: Measured) -> tuple[float, float]:
    """Return by how much a network is better than a parent, and the standard error."""
    margin = merged.quality - parent.quality
    if merged.score is not None:
        return margin, 0.0
    if merged.sums is None or parent.sums is None:
        return margin, 0.0
    return margin, error_of_difference(merged.sums, parent.sums)


def _answer(margin: float, chance: float) -> Literal["better", "equal", "worse"]:
    if abs(margin) <= max(chance, _ROUNDING):
        return "equal"
    return "better" if margin > 0 else "worse"
