"""Rows: the axes of leaves as a person writes them, found and read.

Everything of one kind that is wrong is reported in one error.
"""

from collections.abc import Iterable, Mapping, Sequence

from jmudsc.paths import did_you_mean, listed
from jmudsc.spec.axes import Axis, Concat, Family, Fixed, Product, Units
from jmudsc.spec.notation import parse_axis, Row

Axes = Mapping[str, tuple[Axis, ...]]
Shapes = Mapping[str, tuple[int, ...]]


def by_leaf(
    where: str, rows: Mapping[str, Row], leaves: Iterable[str]
) -> dict[str, Row]:
    """Find the leaf that each row is about.

    Args:
        where: the caller, named in the error.
        rows: name -> row. A name is a path, or a path without its first part (`params`)
            if that leaves one leaf that it can be.
        leaves: the paths there are.

    Returns:
        Path -> row, in the order of `rows`.

    Raises:
        ValueError: listing the names that are no leaf, or one of several, or the same
            leaf as another.
    """
    leaves = list(leaves)
    found: dict[str, Row] = {}
    problems = []
    for name, row in rows.items():
        meant = [path for path in leaves if path == name]
        meant = meant or [path for path in leaves if path.partition("/")[2] == name]
        if not meant:
            short = [path.partition("/")[2] for path in leaves]
            hint = did_you_mean(name, [*leaves, *filter(None, short)])
            problems.append(f'"{name}" is no leaf{hint}')
        elif len(meant) > 1:
            problems.append(f'"{name}" can be {" or ".join(meant)}')
        elif meant[0] in found:
            problems.append(f'"{name}" is {meant[0]}, which has a row already')
        else:
            found[meant[0]] = row
    if problems:
        raise ValueError(
            f"{where}: {len(problems)} of {len(rows)} rows are not about one leaf "
            f"each:\n{listed(problems)}\nName leaves by their paths."
        )
    return found


def axes_of(where: str, rows: Mapping[str, Row], shapes: Shapes) -> Axes:
    """Read rows as axes, with labels of size 0 where a row does not say it.

    Args:
        where: the caller, named in the error.
        rows: leaf path -> row.
        shapes: leaf path -> shape.

    Returns:
        Leaf path -> one expression per axis.

    Raises:
        ValueError: listing the rows with another number of axes than their leaf, or the
            axes that cannot be read.
    """
    entries = {path: _entries(row) for path, row in rows.items()}
    wrong = [
        f"{path} has shape {shapes[path]}, the row has {len(entry)} axes"
        for path, entry in entries.items()
        if len(entry) != len(shapes[path])
    ]
    if wrong:
        raise ValueError(
            f"{where}: {len(wrong)} rows have another number of axes than their "
            f"leaves:\n{listed(wrong)}\nGive one entry per axis, None if it stays."
        )
    axes, problems = {}, []
    for path, row in entries.items():
        axes[path] = []
        for number, (entry, length) in enumerate(zip(row, shapes[path], strict=True)):
            try:
                axes[path].append(_axis(entry, length))
            except ValueError as error:
                problems.append(f"{path}:{number} {error}")
    if problems:
        raise ValueError(
            f"{where}: {len(problems)} axes cannot be read:\n{listed(problems)}\n"
            'Write a label, a length, a product "4*P_1" or a concatenation "P_1+P_2".'
        )
    return {path: tuple(row) for path, row in axes.items()}


def _entries(row: Row) -> Sequence[str | int | Axis | None]:
    if isinstance(row, str):
        return row.split(",") if row.strip() else []
    return row


def _axis(entry: str | int | Axis | None, length: int) -> Axis:
    if entry is None:
        return Fixed(length)
    if isinstance(entry, str):
        return Fixed(length) if entry.strip() == "None" else parse_axis(entry.strip())
    if isinstance(entry, Fixed | Units | Product | Concat | Family):
        return entry
    if isinstance(entry, int) and not isinstance(entry, bool):
        return Fixed(entry)
    raise ValueError(f"is {entry!r}, needed is text, a length, None or an axis")
