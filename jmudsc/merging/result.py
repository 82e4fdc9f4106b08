"""Result: everything one merge produced."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc.merging.refit_share import refit_sentence
from jmudsc.merging.verdict import Verdict
from jmudsc.spec.permutation_spec import PermutationSpec


@dataclass(frozen=True)
class MergeResult:
    """What `merge` returns and `save` writes.

    Attributes:
        variables: the merged variables, a pytree of the parents' structure; where some
            leaves are separate, the first of `networks`.
        spec: the permutation spec the merge was made with, of the leaves it merged.
        assignment: per label `int32[models, *outer units, units]`, the merged unit
            that each unit of each model went to.
        history: the objective of each sweep of coordinate descent: the mean over
            labels of the mean similarity of matched units, in [-1, 1].
        recipe: what decided the merge (method, alpha, weights, ..., and the machine,
            which decides the last bits), plain JSON values.
        changes: path of a leaf -> what refit and repair did with it after averaging, or
            why they could do nothing; empty without them.
        networks: where some leaves are separate, per model its variables: the leaves
            that were merged, and its own others carried into the merged coordinates,
            for its own `apply_fn`; empty otherwise.
        verdict: whether the merged network is better than the best single parent, on
            batches that were held out; None where nothing says so (`recipe` says why).
        seconds: stage -> seconds of wall time, compilation included: deriving and
            checking the spec, statistics, judging, matching and combining (over all
            balances tried), repairing. They are in the report, not in the provenance:
            the same merge takes another time.
    """

    variables: PyTree
    spec: PermutationSpec
    assignment: Mapping[str, np.ndarray]
    history: tuple[float, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, str] = field(default_factory=dict)
    networks: tuple[PyTree, ...] = ()
    verdict: Verdict | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def refit_reach(self) -> str | None:
        """How many parameters a refit changed, as a sentence; None without one."""
        return refit_sentence(self.variables, self.changes)
