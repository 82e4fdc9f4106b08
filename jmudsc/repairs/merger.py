"""Merger: what a merged network was made of, as every repair takes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import PyTree

from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn, UpdateFn


@dataclass(frozen=True)
class Merger:
    """How a network was merged: all that a repair needs to know beside the result.

    Attributes:
        spec: the permutation spec.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        parents: the variables of each.
        assignment: label -> `int32[parents, *outer units, units]`, the merged unit that
            each unit of each parent went to.
        shares: the share of each parent, summing to 1.
        update_fn: `(variables, batch) -> variables` as training updates running
            statistics; None if there is none.
    """

    spec: PermutationSpec
    apply_fn: ApplyFn
    parents: Sequence[PyTree]
    assignment: Mapping[str, np.ndarray]
    shares: tuple[float, ...]
    update_fn: UpdateFn | None = None
