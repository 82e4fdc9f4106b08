"""Match options: by which method units are matched, and with which settings."""

from dataclasses import dataclass

from jmudsc.matching.methods import Method, TABLE
from jmudsc.matching.moment_cache import BUDGET
from jmudsc.matching.pairing import PairingOptions


@dataclass(frozen=True)
class MatchOptions:
    """What decides a search besides the models, alpha and the key.

    The keywords of `match` and `matcher`, in one record.

    Attributes:
        method: a row of the table of methods.
        a: for zip, decay of a merged unit's similarities, in [0, 1].
        b: for zip, share of merges a model may spend on its own units, in [0, 1].
        reference: what more than two models are aligned to; see `align_to`.
        patience: sweeps without improvement after which to stop.
        max_sweeps: sweeps after which to stop in any case.
        budget: bytes that `MomentCache` may keep.
    """

    method: Method = TABLE["mudsc-zip"]
    a: float = 0.5
    b: float = 1.0
    reference: str = "first"
    patience: int = 5
    max_sweeps: int = 100
    budget: int = BUDGET

    @property
    def of_pairing(self) -> PairingOptions:
        """Those that a pairing looks at."""
        return PairingOptions(self.a, self.b, self.reference)
