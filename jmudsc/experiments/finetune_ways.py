"""Fine-tune ways: the methods of the experiment on fine-tunes, with their options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jmudsc.finetunes.methods import FINETUNE_METHODS

# Which are for other cases: two models, checkpoints of one run.
LEFT_OUT = tuple(
    name for name, row in FINETUNE_METHODS.items() if row.most == 2 or name == "window"
)


@dataclass(frozen=True)
class Way:
    """A method with options.

    Attributes:
        name: in the report.
        method: of `FINETUNE_METHODS`.
        options: what it is called with, besides what all are.
        mends: whether what is done after merging needs images.
    """

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    mends: bool = False

    @property
    def needs_images(self) -> bool:
        """Whether it needs unlabelled images, whatever the network."""
        return self.mends or FINETUNE_METHODS[self.method].needs_data

    @property
    def is_scaled(self) -> bool:
        """Whether there is a scale to choose; a calibration undoes it."""
        has_scale = FINETUNE_METHODS[self.method].lambda_ is not None
        return has_scale and "calibrate" not in self.options


_REFIT = {"refit": "least-squares"}

WAYS: Mapping[str, Way] = {
    way.name: way
    for way in (
        *(Way(name, name) for name in FINETUNE_METHODS if name not in LEFT_OUT),
        Way("ties at density 0.5", "ties", {"density": 0.5}),
        Way("ties of the tree", "ties", {"scope": "tree"}),
        Way("wudi exact", "wudi", {"solver": "exact"}),
        Way("wudi from the mean", "wudi", {"init": "mean"}),
        Way("lot at rtol 0.01", "lot", {"rtol": 0.01}),
        Way("featcal at ridge 0.005", "featcal", {"ridge": 0.005}),
        Way("task_arithmetic + svc", "task_arithmetic", {"calibrate": "svc"}),
        Way("ties + svc", "ties", {"calibrate": "svc"}),
        Way("tsv + svc", "tsv", {"calibrate": "svc"}),
        Way("linear + refit", "linear", _REFIT, mends=True),
        Way("tsv + refit", "tsv", _REFIT, mends=True),
    )
}
