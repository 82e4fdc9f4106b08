"""YAML text: plain values from the bytes of a file, or why there are none.

YAML lets through what cannot be meant: a key that is given twice, of which the last one
counts; a few lines that stand for more values than there is memory; brackets deeper
than Python can follow. All of that is found before any value is made.
"""

import codecs
import re
from collections.abc import Hashable, Iterable
from typing import Any

import yaml

from jmudsc.paths import cut, listed, plural

# No recipe and no config comes near these.
_MOST_BYTES = 2**20
_MOST_VALUES = 20_000
_DEEPEST = 50
_MOST_DIGITS = 300

_ENCODINGS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # starts as that of UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DIGITS = re.compile(r"[-+]?[0-9_]+")
_MERGE = "tag:yaml.org,2002:merge"


def plain_values(where: str, data: bytes) -> Any:
    """Read plain values from the bytes of a YAML file.

    Args:
        where: the file, named in an error.
        data: what is in it: UTF-8, or UTF-16 or UTF-32 with a byte order mark.

    Returns:
        What the file says.

    Raises:
        ValueError: if it is too large, no text, no YAML, deeper or of more values than
            anything that is meant, or says the same key twice.
    """
    if len(data) > _MOST_BYTES:
        raise ValueError(
            f"{where}: expected YAML of at most {_MOST_BYTES} bytes, got {len(data)}. "
            "Correct the path; arrays belong into checkpoints."
        )
    text = decoded(where, data)
    try:
        _check_size(where, text)
        return _loaded(where, text)
    except yaml.YAMLError as error:
        raise ValueError(
            f"{where}: expected YAML, got a text that is none. Correct this:\n{error}"
        ) from error


def decoded(where: str, data: bytes) -> str:
    """Read a text, in the encoding that its byte order mark says, or UTF-8.

    Args:
        where: the file, named in an error.
        data: what is in it.

    Returns:
        The text.

    Raises:
        ValueError: if it is in another encoding, or no text.
    """
    marked = [name for mark, name in _ENCODINGS if data.startswith(mark)]
    encoding = marked[0] if marked else "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line, byte = data[: error.start].count(b"\n") + 1, data[error.start]
        raise ValueError(
            f"{where}: expected a text in {encoding.upper()}, got the byte "
            f"0x{byte:02x} on line {line}, which is no text there. Save the file as "
            "UTF-8."
        ) from error
    if "\0" in text:
        raise ValueError(
            f"{where}: expected a text in UTF-8, got one with zero bytes, as UTF-16 "
            "without a byte order mark has. Save the file as UTF-8."
        )
    return text


def _loaded(where: str, text: str) -> Any:
    """Make the values of a text that is not too large, or say which keys are twice."""
    loader = _Loader(text)
    try:
        values = loader.get_single_data()
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{where}: expected values that can be read, got one that cannot: "
            f"{cut(str(error))}. Put it in quotes if it is a text."
        ) from error
    except (AttributeError, LookupError, TypeError) as error:  # of a tag that is wrong
        raise ValueError(
            f"{where}: expected values that their tags are for, got another after one "
            "of !!bool, !!timestamp and such. Leave the tag out."
        ) from error
    finally:
        loader.dispose()
    if loader.twice:
        raise ValueError(
            f"{where}: expected every key once, got "
            f"{plural(len(loader.twice), 'key')} twice:\n{listed(loader.twice)}\n"
            "Leave out one of each."
        )
    return values


class _Loader(yaml.SafeLoader):
    """A loader that notes the keys that are given twice in one mapping."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        first: dict[Hashable, int] = {}
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for key_node, _ in pairs:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, Hashable) and key in first:
                shown = cut(str(key), 40)
                self.twice.append(f"{shown}: on line {first[key]} and on line {line}")
            elif isinstance(key, Hashable):
                first[key] = line
        return super().construct_mapping(node, deep)


def _check_size(where: str, text: str) -> None:
    """Check how deep a text goes and for how many values it stands, without them."""
    stack: list[tuple[str | None, int]] = []  # of each open bracket: anchor, values
    anchors: dict[str, int] = {}
    total = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        size = _size_of(where, event, stack, anchors)
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append((event.anchor, 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = stack.pop()
            if anchor is not None:
                anchors[anchor] = size
        if size and stack:
            anchor, before = stack.pop()
            stack.append((anchor, before + size))
            total = max(total, before + size)
        line = event.start_mark.line + 1
        if len(stack) > _DEEPEST:
            raise ValueError(
                f"{where}: expected at most {_DEEPEST} levels of values in values, got "
                f"more on line {line}. Correct the brackets."
            )
        if total > _MOST_VALUES:
            raise ValueError(
                f"{where}: expected at most {_MOST_VALUES} values, got more up to line "
                f"{line}, each counted as often as aliases repeat it. Leave out "
                "aliases of aliases."
            )


def _size_of(
    where: str,
    event: Any,
    stack: Iterable[tuple[str | None, int]],
    anchors: dict[str, int],
) -> int:
    """Return for how many values a scalar or an alias stands; 0 for what is neither."""
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent):
        if any(anchor == event.anchor for anchor, _ in stack):
            raise ValueError(
                f"{where}: expected values that end, got *{event.anchor} on line "
                f"{line} within what it stands for. Leave it out."
            )
        return anchors.get(event.anchor, 1)
    if not isinstance(event, yaml.ScalarEvent):
        return 0
    if event.anchor is not None:
        anchors[event.anchor] = 1
    digits = sum(map(str.isdigit, event.value)) if event.implicit[0] else 0
    if digits > _MOST_DIGITS and _DIGITS.fullmatch(event.value):
        raise ValueError(
            f"{where}: expected numbers of at most {_MOST_DIGITS} digits, got one of "
            f"{digits} on line {line}. Correct it."
        )
    return 1
