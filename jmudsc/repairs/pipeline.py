"""Pipeline: do to a merged network, one after another, the repairs it is to have."""

from collections.abc import Container, Iterable, Mapping, Sequence

from jaxtyping import PyTree

from jmudsc.progress import Counted, Progress
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.table import Repair


def repaired(
    rows: Sequence[Repair],
    merger: Merger,
    merged: PyTree,
    batches: Iterable[PyTree] | None,
    progress: Progress,
    within: Container[str] | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Repair a merged network.

    Args:
        rows: what to do, from `asked`.
        merger: how the network was merged.
        merged: its variables.
        batches: the calibration batches, a re-iterable; None for none.
        progress: called with the stage, how much of it is done, and out of how much.
        within: the paths of the leaves that may change; None for all.

    Returns:
        The variables, and for every leaf what was done with it or why nothing was.
    """
    changes: dict[str, str] = {}
    for row in rows:
        if not row.needs_batches:
            progress(row.stage, 0, 1)
            merged, done = row.apply(merger, merged, None, within)
        elif batches is not None:
            seen = Counted(batches, row.stage, progress)
            merged, done = row.apply(merger, merged, seen, within)
        else:
            continue
        changes = _both(changes, done)
    return merged, changes


def check_needs(
    where: str, rows: Sequence[Repair], batches: Iterable[PyTree] | None
) -> None:
    """Check that there are batches where repairs need them.

    Args:
        where: the caller, named in the error.
        rows: from `asked`.
        batches: the calibration batches, if there are any.

    Raises:
        ValueError: listing the repairs that need some.
    """
    needy = [
        f'{row.option}="{row.name}"'
        for row in rows
        if row.needs_batches and not row.is_optional and batches is None
    ]
    if needy:
        raise ValueError(
            f"{where}: batches: expected some for {' and '.join(needy)}, got None. "
            "Pass calibration batches."
        )


def _both(first: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str]:
    """Put together what was done with each leaf, one after the other."""
    told = dict(first)
    for path, done in then.items():
        before = told.get(path, done)
        told[path] = done if before == done else f"{before}; {done}"
    return told
