"""Tables: rows of figures, as Markdown."""

from collections.abc import Sequence

import numpy as np


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table with aligned columns, the first one to the left.

    Args:
        header: one title per column.
        rows: one text per column each.

    Returns:
        The table, one line per row.

    Example:
        >>> print(table(["method", "joint"], [["average", "0.41"]]))
        | method  | joint |
        |:--------|------:|
        | average |  0.41 |
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    rule = [
        ":" + "-" * (w + 1) if i == 0 else "-" * (w + 1) + ":"
        for i, w in enumerate(widths)
    ]
    lines = [_line(header, widths), f"|{'|'.join(rule)}|"]
    return "\n".join(lines + [_line(row, widths) for row in rows])


def mean_and_std(values: Sequence[float]) -> str:
    """Write the mean of values, with their standard deviation if there are several.

    Args:
        values: at least one.

    Returns:
        `0.912` or `0.912 ± 0.004`; the standard deviation is that of a sample (n - 1).
    """
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = [
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join([first, *rest])} |"
