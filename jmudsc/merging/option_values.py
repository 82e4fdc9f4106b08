"""Option values: what an option may be, read from plain values such as YAML has.

A reader returns the value, or says in a `ValueError` what was expected, what it got and
what to do: a sentence to go after the name of the option.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jmudsc.paths import cut, did_you_mean

Reader = Callable[[Any], Any]
MERGE = "merge"


def as_tuple(value: Any) -> Any:
    """Return several things as a tuple, one text as a tuple of it, others as they are.

    Example:
        >>> as_tuple("head/*"), as_tuple([1.0, 2.0]), as_tuple(None)
        (('head/*',), (1.0, 2.0), None)
    """
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, Iterable) else value


def as_pairs(value: Any) -> Any:
    """Return a mapping, or a list of pairs, as a tuple of pairs, others as they are.

    Example:
        >>> as_pairs({"ema/*": "params/*"})
        (('ema/*', 'params/*'),)
    """
    value = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(value, list | tuple):
        return value
    return tuple(tuple(x) if isinstance(x, list) else x for x in value)


def one_of(known: Sequence[str]) -> Reader:
    """Return the reader of one of several names.

    Example:
        >>> one_of(["first", "mean"])("mean")
        'mean'
    """

    def read(value: Any) -> str:
        if value not in known:
            is_text = isinstance(value, str)
            hint = did_you_mean(value, known) if is_text else ". Write a name."
            raise ValueError(
                f"expected one of {', '.join(known)}, got {quoted(value)}{hint or '.'}"
            )
        return value

    return read


def share_or(choices: Sequence[str], advice: str) -> Reader:
    """Return the reader of a number in [0, 1] in the place of which a name may stand.

    Args:
        choices: the names.
        advice: the sentence that says what to do.
    """

    def read(value: Any) -> Any:
        if isinstance(value, str):
            good = value in choices
        else:
            good = is_number(value) and 0 <= value <= 1
        if not good:
            names = " or ".join(f'"{choice}"' for choice in choices)
            raise ValueError(
                f"expected a number in [0, 1], {names}, got {quoted(value)}. {advice}"
            )
        return value if isinstance(value, str) else float(value)

    return read


def share_to_hold(value: Any) -> float | None:
    """Read a number from 0 to below 1, or None."""
    if value is None:
        return None
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(
            f"expected a number of at least 0 and below 1, got {quoted(value)}. Pass 0 "
            "to judge a merge on what it was made from, None not to judge it."
        )
    return float(value)


def shares_to_try(value: Any) -> tuple[float, ...]:
    """Read one or more numbers in [0, 1]."""
    good = isinstance(value, list | tuple) and all(map(is_number, value))
    if not good or not value or not all(0 <= number <= 1 for number in value):
        raise ValueError(
            f"expected one or more numbers in [0, 1], got {listing(value)}. Leave "
            "them out for 0, 0.1, ..., 1."
        )
    return tuple(float(number) for number in value)


def above_zero(advice: str) -> Reader:
    """Return the reader of a finite number above 0.

    Args:
        advice: the sentence that says what to do.
    """

    def read(value: Any) -> float:
        if not is_number(value) or value <= 0:
            raise ValueError(
                f"expected a finite number above 0, got {quoted(value)}. {advice}"
            )
        return float(value)

    return read


def model_weights(value: Any) -> tuple[float, ...]:
    """Read one number of at least 0 per model, not all 0."""
    good = isinstance(value, list | tuple) and all(map(is_number, value))
    if not good or not any(value) or min(value) < 0:
        raise ValueError(
            "expected one number of at least 0 for each model, not all of them 0, got "
            f"{listing(value)}. Leave them out for equal shares."
        )
    return tuple(float(number) for number in value)


def function(value: Any) -> Any:
    """Read a function."""
    if not callable(value):
        raise ValueError(
            f"expected a function, got {quoted(value)}. Pass the function itself."
        )
    return value


def functions(value: Any) -> Any:
    """Read a function, or several."""
    if isinstance(value, list | tuple) and value:
        return tuple(map(function, value))
    return function(value)


def patterns(value: Any) -> tuple[str, ...]:
    """Read shell patterns of names."""
    good = isinstance(value, list | tuple)
    if not good or not all(text and isinstance(text, str) for text in value):
        raise ValueError(
            f"expected a list of patterns of labels or leaves, got {listing(value)}. "
            "Put each pattern in quotes."
        )
    return tuple(value)


def pairs_of_patterns(value: Any) -> tuple[tuple[str, str], ...]:
    """Read patterns of leaves, each with the pattern of what they move like."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list | tuple) or not all(map(_is_pair, pairs)):
        raise ValueError(
            "expected a mapping of patterns of leaves to those of the leaves that they "
            f'move like, got {listing(value)}. Write them as {{"ema/*": "params/*"}}.'
        )
    wrong = [
        f'"{ours}" has {ours.count("*")} and "{theirs}" {theirs.count("*")}'
        for ours, theirs in pairs
        if ours.count("*") != theirs.count("*")
    ]
    if wrong:
        raise ValueError(
            f"expected as many * on both sides, got others: {', '.join(wrong)}. Each * "
            "stands for the same text on both."
        )
    return tuple((ours, theirs) for ours, theirs in pairs)


def _is_pair(value: Any) -> bool:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    return is_pair and all(text and isinstance(text, str) for text in value)


def merge_or_number(value: Any) -> str | int:
    """Read "merge", or the number of a model."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value != MERGE and not (is_number and value >= 0):
        raise ValueError(
            f'expected "{MERGE}" or the number of a model, got {quoted(value)}. Count '
            "models from 0."
        )
    return value


def yes_or_no(value: Any) -> bool:
    """Read a truth value."""
    if not isinstance(value, bool):
        raise ValueError(f"expected True or False, got {quoted(value)}.")
    return value


def is_number(value: Any) -> bool:
    """Return whether a value is one finite real number, and no truth value."""
    if isinstance(value, bool | str | bytes | None):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, OverflowError):  # of an int that is no float
        return False


def quoted(value: Any) -> str:
    """Write a value as it is shown in an error: text in double quotes, long ones cut.

    Example:
        >>> quoted("zip"), quoted(0.5), len(quoted([1] * 1000)) < 150
        ('"zip"', '0.5', True)
    """
    if isinstance(value, str):
        return f'"{cut(value)}"'
    try:
        return cut(repr(value))
    except ValueError:  # an int in it has more digits than Python writes
        return f"an object of type {type(value).__name__} that is too long to write"


def listing(value: Any) -> str:
    """Write several values as a list, whatever holds them."""
    return quoted(list(value)) if isinstance(value, tuple) else quoted(value)
