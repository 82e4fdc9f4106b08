"""Option: what recipes, plans, dumps and provenance need to know of one option."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jmudsc.merging.option_values import Reader


@dataclass(frozen=True)
class Outcome:
    """What provenance tells of a merge beside its options.

    Attributes:
        shares: the share of each model, summing to 1.
        alpha: the balance that was used.
        scores: every balance tried and its score.
        chosen: the name of what method "best" chose; None for other methods.
        tried: by name what it tried, and the score or the cosine of each.
    """

    shares: tuple[float, ...]
    alpha: float
    scores: tuple[tuple[float, float], ...] = ()
    chosen: str | None = None
    tried: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """What there is to know of an option besides its name and its default.

    Attributes:
        says: one line on what it decides.
        read: turns a plain value, as YAML has it, into that of the option; a
            `ValueError` says what was expected. None for what is no plain value.
        in_recipe: how a recipe gives it: as a plain `value`, or as the `import path` of
            a Python object; None if recipes have no such key.
        is_dumped: whether the dump of a recipe shows it; None for wherever it is not
            its default.
        recorded: its entries in a result's provenance; None for its plain value
            wherever it is not its default.
    """

    says: str
    read: Reader | None = None
    in_recipe: Literal["value", "import path"] | None = "value"
    is_dumped: Callable[[Any], bool] | None = None
    recorded: Callable[[Any, Outcome], Mapping[str, Any]] | None = None

    @property
    def metadata(self) -> dict[str, "Option"]:
        """What a field of `MergeOptions` carries."""
        return {"option": self}
