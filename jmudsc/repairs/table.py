"""Table: every repair there is, one row each, in the order in which they are done.

What options there are for a repair, which batches and functions it needs, and whether a
plan names it as a stage: all comes from these rows. A new repair is a file and a row.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from jaxtyping import PyTree

from jmudsc.repairs.batch_stats import pool, reset
from jmudsc.repairs.least_squares import LeastSquares, refit_layers
from jmudsc.repairs.rescale import rescale_layers

# (merger, merged, batches, within) -> the variables, and leaf path -> what was done.
Apply = Callable[..., tuple[PyTree, Mapping[str, str]]]


@dataclass(frozen=True)
class Repair:
    """One way to mend a network after averaging.

    Attributes:
        name: what it is called, in a report and as the value of its option.
        option: the option that asks for it, by its name or by a function of the user.
        stage: what is told while it is done.
        apply: does it: `(merger, merged, batches, within)`, as `refit_layers`; with
            `settings` as a keyword too where it has some.
        reads: how it goes through the calibration batches: `layers` runs the merged
            network and all parents side by side, layer by layer; `updates` runs the
            merged network alone, as often as there are batches. None if it needs none.
        solves: whether it takes the Gram matrices of what goes into every layer.
        is_optional: whether it is left out, and no error, where there are no batches.
        on_trunk: whether it can be done to a trunk that has no head.
        on_heads: whether it is done to a network that has its own head, once its trunk
            is repaired.
        excludes: names of repairs that it cannot go with.
        because: why not, to go after "since it".
        yields_to: names of repairs that do what it does, so that it is left out.
        is_local: whether it leaves alone what is not `within`.
        settings: a record whose fields are the options it has; None for none.
    """

    name: str
    option: str
    stage: str
    apply: Apply
    reads: Literal["layers", "updates"] | None = "layers"
    solves: bool = False
    is_optional: bool = False
    on_trunk: bool = True
    on_heads: bool = True
    excludes: tuple[str, ...] = ()
    because: str = ""
    yields_to: tuple[str, ...] = ()
    is_local: bool = True
    settings: type | None = None

    @property
    def needs_batches(self) -> bool:
        """Whether it reads calibration batches."""
        return self.reads is not None


REPAIRS: tuple[Repair, ...] = (
    Repair(
        "least-squares",
        "refit",
        "refitting",
        refit_layers,
        solves=True,
        settings=LeastSquares,
    ),
    Repair("rescale", "repair", "repairing", rescale_layers),
    Repair(
        "pooled",
        "repair",
        "pooling statistics",
        pool,
        reads=None,
        on_heads=False,  # the statistics of a head are those of one parent
        excludes=("least-squares", "reset"),
        because="sets running statistics itself",
        is_local=False,
    ),
    Repair(
        "reset",
        "update_fn",
        "resetting statistics",
        reset,
        reads="updates",
        is_optional=True,
        on_trunk=False,  # an update runs the whole network
        yields_to=("rescale",),
        is_local=False,
    ),
)


def names_of(option: str) -> tuple[str, ...]:
    """Return the repairs that an option may name.

    Args:
        option: of `merge`.

    Example:
        >>> names_of("repair")
        ('rescale', 'pooled')
    """
    return tuple(row.name for row in REPAIRS if row.option == option)


def asked(options: Any) -> list[Repair]:
    """Return the repairs that some options ask for, in order, with their settings.

    Args:
        options: a record that has all options that rows name, such as `MergeOptions`.
            Settings that it has not are as they are by default.

    Returns:
        Rows whose `apply` knows its settings.
    """
    wanted = [row for row in REPAIRS if _is_asked(row, getattr(options, row.option))]
    names = {row.name for row in wanted}
    return [
        _with_settings(row, options)
        for row in wanted
        if names.isdisjoint(row.yields_to)
    ]


def clashes(options: Any) -> list[str]:
    """Say which of the repairs that are asked for cannot go together.

    Args:
        options: as for `asked`.

    Returns:
        One sentence for every repair that excludes others.
    """
    wanted = asked(options)
    said = []
    for row in wanted:
        others = [other.option for other in wanted if other.name in row.excludes]
        if others:
            said.append(
                f'{row.option}: expected "{row.name}" alone, since it {row.because}, '
                f"got {' and '.join(others)} too. Leave out all but one."
            )
    return said


def _is_asked(row: Repair, value: Any) -> bool:
    return value == row.name if isinstance(value, str) else value is not None


def _with_settings(row: Repair, options: Any) -> Repair:
    if row.settings is None:
        return row
    names = [each.name for each in fields(row.settings) if hasattr(options, each.name)]
    values = {name: getattr(options, name) for name in names}
    settings = row.settings(**values)
    return replace(row, apply=functools.partial(row.apply, settings=settings))
