"""Option: what one option of a method may be, and what it is if it is not given."""

import math
import numbers
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Number:
    """A finite number of a range.

    Attributes:
        low: the least.
        high: the largest.
        above: whether `low` itself is left out.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __str__(self) -> str:
        """Say what is expected."""
        if self.low == -math.inf and self.high == math.inf:
            return "a finite number"
        if self.high == math.inf:
            return f"a number {'>' if self.above else '>='} {self.low:g}"
        return f"a number in {'(' if self.above else '['}{self.low:g}, {self.high:g}]"

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        number = float(value)
        least = number > self.low if self.above else number >= self.low
        return math.isfinite(number) and least and number <= self.high


@dataclass(frozen=True)
class Whole:
    """A whole number.

    Attributes:
        low: the least.
    """

    low: int = 1

    def __str__(self) -> str:
        """Say what is expected."""
        return f"a whole number >= {self.low}"

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return is_whole and int(value) >= self.low


@dataclass(frozen=True)
class Flag:
    """True or False."""

    def __str__(self) -> str:
        """Say what is expected."""
        return "True or False"

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        return isinstance(value, bool)


@dataclass(frozen=True)
class OneOf:
    """One of some words, or something of another kind.

    Attributes:
        words: the words; None among them for no value.
        other: what else it may be; None for nothing.
    """

    words: tuple[str | None, ...]
    other: Number | Whole | None = None

    def __str__(self) -> str:
        """Say what is expected."""
        said = ["None" if w is None else f'"{w}"' for w in self.words]
        said += [] if self.other is None else [str(self.other)]
        return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} or {said[-1]}"

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        if value is None or isinstance(value, str):
            return value in self.words
        return self.other is not None and self.other.holds(value)


Kind = Number | Whole | Flag | OneOf


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        name: its name.
        default: what it is if it is not given.
        kind: what it may be.
        about: what it means, a phrase.
        per_model: whether every model may have its own.
        per_leaf: whether every leaf may have its own.
    """

    name: str
    default: Any
    kind: Kind
    about: str
    per_model: bool = False
    per_leaf: bool = True
