"""Notation: specs as text, an axis, the rows of leaves, and all of `print(spec)`.

`str(axis)` writes the notation, this reads it:

    axis    = product + product + ...       a concatenation
    product = factor * factor * ...         row-major, the first varies slowest
    factor  = label | length | length#split | (axis) | {axis|axis|...}#split

A label is any text without blanks, commas and the signs above, but for a number.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from jmudsc.paths import did_you_mean, listed
from jmudsc.spec.axes import Axis, Concat, Family, Fixed, Product, Units
from jmudsc.spec.permutation_spec import Site

# The axes of one leaf: "4*P_1, 10", or one entry per axis, None for a fixed axis.
Row = str | Sequence[str | int | Axis | None]
# Leaf path -> one expression per axis.
LeafAxes = Mapping[str, tuple[Axis, ...]]
# Leaf path -> its shape.
Shapes = Mapping[str, tuple[int, ...]]

_TOKEN = re.compile(r"[+*(){}|#,]|[^\s+*(){}|#,]+")
_SIGNS = set("+*(){}|#,")
_Tokens = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Table:
    """A spec as it is written: names and text, nothing of which is checked yet.

    Attributes:
        rows: leaf path -> its axes.
        sizes: label -> units.
        outer: label -> the labels it is nested in, outermost first.
        held: label -> why it is fixed itself.
        fixed: site -> why it may not be permuted.
        alike: leaf path -> that of the leaf that it moves like.
    """

    rows: Mapping[str, Row]
    sizes: Mapping[str, int] = field(default_factory=dict)
    outer: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[Site, str] = field(default_factory=dict)
    alike: Mapping[str, str] = field(default_factory=dict)


def parse_axis(text: str) -> Axis:
    """Read one axis.

    Args:
        text: such as `4*P_1`.

    Returns:
        The expression. Its labels have size 0: how many units they have is not said.

    Raises:
        ValueError: saying what was expected where, and what is there.

    Example:
        >>> str(parse_axis(" 4 * (P_1 + P_2)"))
        '4*(P_1+P_2)'
    """
    tokens = [(found[0], found.start()) for found in _TOKEN.finditer(text)]
    tokens.append(("", len(text)))
    try:
        axis, at = _concat(tokens, 0)
        _expect(tokens, at, "", '"+", "*" or the end')
    except ValueError as error:
        raise ValueError(f'"{text}": {error}') from None
    return axis


def _refuse(tokens: _Tokens, at: int, needed: str) -> NoReturn:
    text, start = tokens[at]
    found = f'"{text}"' if text else "the end"
    raise ValueError(f"expected {needed} at character {start + 1}, got {found}")


def _concat(tokens: _Tokens, at: int) -> tuple[Axis, int]:
    parts, at = _chain(tokens, at, "+", _product)
    return (parts[0] if len(parts) == 1 else Concat(tuple(parts))), at


def _product(tokens: _Tokens, at: int) -> tuple[Axis, int]:
    factors, at = _chain(tokens, at, "*", _factor)
    return (factors[0] if len(factors) == 1 else Product(tuple(factors))), at


def _factor(tokens: _Tokens, at: int) -> tuple[Axis, int]:
    text, _ = tokens[at]
    if text == "(":
        axis, at = _concat(tokens, at + 1)
        return axis, _expect(tokens, at, ")", '"+", "*" or ")"')
    if text == "{":
        members, at = _chain(tokens, at + 1, "|", _concat)
        at = _expect(tokens, at, "}", '"+", "*", "|" or "}"')
        at = _expect(tokens, at, "#", '"#" and the number of an axis')
        return Family(_number(tokens, at), tuple(members)), at + 1
    if text.isdecimal():
        if tokens[at + 1][0] == "#":
            return Fixed(int(text), _number(tokens, at + 2)), at + 3
        return Fixed(int(text)), at + 1
    if not text or text in _SIGNS:
        _refuse(tokens, at, 'a label, a length, "(" or "{"')
    return Units(text, 0), at + 1


def _chain(
    tokens: _Tokens, at: int, sign: str, read: Callable[..., tuple[Axis, int]]
) -> tuple[list[Axis], int]:
    first, at = read(tokens, at)
    found = [first]
    while tokens[at][0] == sign:
        following, at = read(tokens, at + 1)
        found.append(following)
    return found, at


def _number(tokens: _Tokens, at: int) -> int:
    if not tokens[at][0].isdecimal():
        _refuse(tokens, at, "a number")
    return int(tokens[at][0])


def _expect(tokens: _Tokens, at: int, text: str, needed: str) -> int:
    if tokens[at][0] != text:
        _refuse(tokens, at, needed)
    return at + 1


_HEADS = {
    "label": re.compile(r"label\s+units\s+per unit of"),
    "leaf": re.compile(r"leaf\s+axes"),
    "fixed": re.compile(r"fixed\s+why"),
}
_COUNT = re.compile(r"\d+ labels? on \d+ of \d+ (leaf|leaves)")
_LABEL = re.compile(
    r"(?P<name>\S+)\s+(?P<units>\d+)(?P<outer>(\s+[^\s(]\S*)*)"
    r"(\s+\(fixed: (?P<why>.*)\))?"
)
_SITE = re.compile(r"(?P<path>.*):(?P<axis>\d+)\s{2,}(?P<why>.*)")
_Line = tuple[int, str]  # its number and its text
_NOTE = re.compile(r"\s+\((running statistic|moves like (?P<like>.*))\)$")


def read_table(where: str, text: str) -> Table:
    """Read the text that `print(spec)` shows.

    Args:
        where: the caller, named in the error.
        text: all of it; the columns of its tables are two or more blanks apart. The
            table of fixed axes may be missing.

    Returns:
        What is written in it.

    Raises:
        ValueError: listing the lines that are no part of such a text, or if there is no
            table of leaves.
    """
    lines, problems = _by_table(text)
    if "leaf" not in lines:
        raise ValueError(
            f'{where}: expected a text with a table that starts with "leaf  axes", got '
            "one without. Pass all that print(spec) shows, or a mapping of leaf paths "
            "to axes."
        )
    rows: dict[str, Row] = {}
    alike: dict[str, str] = {}
    for number, line in lines["leaf"]:
        path, *axes = re.split(r"\s{2,}", _NOTE.sub("", line), maxsplit=1)
        if path in rows:
            problems.append((number, f'"{path}" has a row already'))
        rows[path] = axes[0] if axes else ""
        if (note := _NOTE.search(line)) and note["like"]:
            alike[path] = note["like"]
    labels = _matched(lines.get("label", []), _LABEL, problems)
    sites = _matched(lines.get("fixed", []), _SITE, problems)
    if problems:
        wrong = [f"line {number}: {problem}" for number, problem in sorted(problems)]
        raise ValueError(
            f"{where}: expected lines as print(spec) shows them, got others:\n"
            f"{listed(wrong)}\nCopy all that print(spec) shows."
        )
    return Table(
        rows,
        sizes={row["name"]: int(row["units"]) for row in labels},
        outer={row["name"]: tuple(row["outer"].split()) for row in labels},
        held={row["name"]: row["why"] for row in labels if row["why"]},
        fixed={Site(row["path"], int(row["axis"])): row["why"] for row in sites},
        alike=alike,
    )


def _by_table(text: str) -> tuple[dict[str, list[_Line]], list[_Line]]:
    """Sort the lines under the heads of their tables; say which belong to none."""
    lines: dict[str, list[_Line]] = {}
    problems: list[_Line] = []
    table = None
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        head = next((name for name, form in _HEADS.items() if form.fullmatch(line)), "")
        if head:
            table = lines.setdefault(head, [])
        elif line and table is not None:
            table.append((number, line))
        elif line and not _COUNT.fullmatch(line):
            problems.append((number, f'"{line}" is in no table'))
    return lines, problems


def _matched(
    lines: Sequence[_Line], form: re.Pattern[str], problems: list[_Line]
) -> list[re.Match[str]]:
    """Match every line with a form; add those that do not to the problems."""
    found = [(number, line, form.fullmatch(line)) for number, line in lines]
    problems += [
        (number, f'"{line}" is no row of its table')
        for number, line, row in found
        if row is None
    ]
    return [row for _, _, row in found if row is not None]


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
            f"{where}: expected rows about one leaf each, got others:\n"
            f"{listed(problems)}\nName leaves by their paths."
        )
    return found


def axes_of(where: str, rows: Mapping[str, Row], shapes: Shapes) -> LeafAxes:
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
        f"{path}: shape {shapes[path]} needs {len(shapes[path])}, got {len(entry)}"
        for path, entry in entries.items()
        if len(entry) != len(shapes[path])
    ]
    if wrong:
        raise ValueError(
            f"{where}: expected as many entries in a row as its leaf has axes, got "
            f"others:\n{listed(wrong)}\nGive one entry per axis, None if it stays."
        )
    axes, problems = {}, []
    for path, row in entries.items():
        axes[path] = []
        for number, (entry, length) in enumerate(zip(row, shapes[path], strict=True)):
            try:
                axes[path].append(_axis(entry, length))
            except ValueError as error:
                problems.append(f"{path}:{number}: {error}")
    if problems:
        raise ValueError(
            f"{where}: expected axes that can be read, got others:\n"
            f"{listed(problems)}\n"
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
    raise ValueError(f"expected text, a length, None or an axis, got {entry!r}")
