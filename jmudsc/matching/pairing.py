"""Pairing: how the units of one label become one, given how alike they are.

A pairing is a record with one function. The methods name the pairing that they use, and
nothing else asks which it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jmudsc.matching.assignment import zip_units
from jmudsc.matching.multi_model import align_to


@dataclass(frozen=True)
class Candidates:
    """The units of one label in every model, and how alike they are.

    Attributes:
        models: number of models.
        units: number of units of each.
        between: `(i, j) -> float[units, units]`, the similarities of the units of two
            models i < j, rows of i, columns of j.
        stacked: `() -> float[models*units, models*units]`, those of all units of all
            models, also of two units of one model.
    """

    models: int
    units: int
    between: Callable[[int, int], np.ndarray]
    stacked: Callable[[], np.ndarray]


@dataclass(frozen=True)
class PairingOptions:
    """The settings of all pairings.

    Attributes:
        a: for zip, decay of a merged unit's similarities, in [0, 1].
        b: for zip, share of merges a model may spend on its own units, in [0, 1].
        reference: for align, what more than two models are aligned to; see `align_to`.
    """

    a: float = 0.5
    b: float = 1.0
    reference: str = "first"


@dataclass(frozen=True)
class Pairing:
    """One way to pair units.

    Attributes:
        name: what it is called.
        pair: returns for each unit of each model the merged unit that it goes to, an
            integer array of shape (models, units).
        merges_own: whether it may merge two units of one model. It looks at how alike
            those are, and units with others nested in them are aligned instead, since
            what is nested could not follow.
    """

    name: str
    pair: Callable[[Candidates, PairingOptions], np.ndarray]
    merges_own: bool = False


def _align(candidates: Candidates, options: PairingOptions) -> np.ndarray:
    models, units = candidates.models, candidates.units
    return align_to(options.reference, candidates.between, models, units)


def _zip(candidates: Candidates, options: PairingOptions) -> np.ndarray:
    return zip_units(candidates.stacked(), candidates.models, options.a, options.b)


ALIGN = Pairing("align", _align)
ZIP = Pairing("zip", _zip, merges_own=True)
