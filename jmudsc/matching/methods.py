"""Methods: the table of all ways to merge, one row each.

What a method reads, how it pairs units and how it averages them is said in its row and
nowhere else: all that depends on the method asks the row, never the name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import PyTree

from jmudsc.matching.pairing import ALIGN, Pairing, ZIP
from jmudsc.paths import did_you_mean
from jmudsc.reordering.combine import combine
from jmudsc.spec.permutation_spec import PermutationSpec

# (spec, models, assignment, weights of the models) -> merged variables, lazy where the
# models are; `partial(combine, average=...)` is one.
Combine = Callable[
    [
        PermutationSpec,
        Sequence[PyTree],
        Mapping[str, np.ndarray],
        Sequence[float] | None,
    ],
    PyTree,
]


@dataclass(frozen=True)
class Method:
    """One way to merge networks: what it needs, how it matches, how it combines.

    A need that no method has yet (a network that all were fine-tuned from, say) becomes
    a field with a default, so that the rows that are there stay as they are.

    Attributes:
        name: what it is called in a call, a recipe, and on the command line.
        activations: whether it needs activation moments, and so batches.
        weights: whether it compares weights, in sweeps of coordinate descent.
        pairing: how units are paired; None leaves them all in place.
        combine: turns models and their assignment into merged variables.
    """

    name: str
    activations: bool = False
    weights: bool = False
    pairing: Pairing | None = None
    combine: Combine = combine

    @property
    def matches(self) -> bool:
        """Whether it looks for other units to pair than those at one position."""
        return self.pairing is not None

    @property
    def blends(self) -> bool:
        """Whether it compares both weights and activations, and so takes an alpha."""
        return self.matches and self.activations and self.weights

    @property
    def zips(self) -> bool:
        """Whether it may merge units of one model, so that it compares those too."""
        return self.pairing is not None and self.pairing.merges_own

    @property
    def aligns(self) -> bool:
        """Whether it pairs units one-to-one."""
        return self.pairing is not None and not self.pairing.merges_own


TABLE: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method("average"),
        Method("weight-align", weights=True, pairing=ALIGN),
        Method("activation-align", activations=True, pairing=ALIGN),
        Method("weight-zip", weights=True, pairing=ZIP),
        Method("activation-zip", activations=True, pairing=ZIP),
        Method("mudsc-align", activations=True, weights=True, pairing=ALIGN),
        Method("mudsc-zip", activations=True, weights=True, pairing=ZIP),
    )
}

METHODS = tuple(TABLE)


def method_of(where: str, name: str) -> Method:
    """Look up a method.

    Args:
        where: the caller, named in the error.
        name: one of `METHODS`.

    Returns:
        Its row.

    Raises:
        ValueError: if there is no such method, with the nearest name.
    """
    if name not in TABLE:
        raise ValueError(
            f'{where}: expected the name of a method, got "{name}"'
            f"{did_you_mean(name, METHODS) or '.'} Choose one of {', '.join(METHODS)}."
        )
    return TABLE[name]


def aligning(method: Method) -> Method:
    """Return the method that pairs one-to-one by what a method compares.

    Args:
        method: any; for one that compares nothing, all that can be compared counts.
    """
    if method.aligns:
        return method
    reads = (method.activations, method.weights)
    wanted = reads if method.matches else (True, True)
    return next(
        row
        for row in TABLE.values()
        if row.aligns and (row.activations, row.weights) == wanted
    )


def names_of(is_meant: Callable[[Method], bool]) -> str:
    """Name some methods for a sentence: "mudsc-align or mudsc-zip"."""
    return " or ".join(row.name for row in TABLE.values() if is_meant(row))


def check_alpha(where: str, alpha: float) -> None:
    """Check a balance.

    Args:
        where: the caller, named in the error.
        alpha: share of the weight similarity.

    Raises:
        ValueError: if it is outside [0, 1].
    """
    is_number = isinstance(alpha, int | float | np.number)
    if not is_number or not 0 <= alpha <= 1:
        raise ValueError(
            f"{where}: expected alpha, the share of the weight similarity, in [0, 1], "
            f"got {alpha}. Pass 0.5 to count weights and activations alike."
        )
