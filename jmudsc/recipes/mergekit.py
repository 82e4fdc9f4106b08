"""mergekit: a configuration of mergekit as the recipe of a merge of fine-tunes.

What its keys mean is documented in its repository; docs/mergekit.md says what is done
otherwise here, and why. Everything that is not understood is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jmudsc.checkpoints.dtypes import FLOATS
from jmudsc.checkpoints.urls import AnyPath
from jmudsc.merging.option_values import quoted
from jmudsc.paths import did_you_mean
from jmudsc.recipes.mergekit_methods import METHODS, Translation
from jmudsc.recipes.mergekit_models import (
    arranged,
    check_keys,
    entries_of,
    model_path,
    Reading,
)
from jmudsc.recipes.mergekit_parameters import settings_of
from jmudsc.recipes.yaml_keys import refuse

# The key by which a configuration of mergekit is known.
_METHOD = "merge_method"
_KEYS = (
    _METHOD,
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer",
    "tokenizer_source",
    "output",  # not one of mergekit's: where to write
)
_TOKENIZER = ("source", "tokens", "pad_to_multiple_of")


@dataclass(frozen=True)
class Translated:
    """The recipe that a configuration of mergekit is.

    Attributes:
        content: the keys of the recipe, as plain values.
        notes: sentences about what of the configuration makes no difference here.
    """

    content: dict[str, Any]
    notes: tuple[str, ...]


def is_mergekit(content: Any) -> bool:
    """Whether plain values are a configuration of mergekit."""
    return isinstance(content, Mapping) and _METHOD in content


def translated(content: Mapping[Any, Any], where: str, folder: AnyPath) -> Translated:
    """Translate a configuration of mergekit.

    Args:
        content: its plain values.
        where: what to call it in errors.
        folder: that of its file: models are looked for there, then in the current
            directory, then in the cache of the Hub. Nothing is downloaded.

    Returns:
        The recipe; with no `output` if there is none.

    Raises:
        ValueError: listing everything that is unknown, wrong, or not there here.
    """
    reading = Reading(folder)
    check_keys(reading, content, _KEYS, "")
    row = _row(reading, content.get(_METHOD))
    entries = entries_of(reading, content)
    base = model_path(reading, content.get("base_model"), "base_model")
    if row is None or not entries:
        refuse(where, reading.problems)
        raise AssertionError("unreachable: something is wrong")
    models = arranged(reading, row, entries, base)
    recipe: dict[str, Any] = {"method": row.here}
    if row.base in ("needed", "optional") and base is not None:
        recipe["base"] = base
    recipe["models"] = [name for name, _ in models]
    recipe |= settings_of(reading, row, models, content.get("parameters"))
    recipe |= _written(reading, content)
    recipe |= _tokenizer(reading, content, base, recipe["models"])
    if "output" in content:
        recipe["output"] = content["output"]
    refuse(where, reading.problems)
    return Translated(recipe, tuple(dict.fromkeys(reading.notes)))


def _row(reading: Reading, method: Any) -> Translation | None:
    if method in METHODS:
        return METHODS[method]
    hint = did_you_mean(str(method), METHODS)
    reading.problems.append(
        f"{_METHOD}: expected one of {', '.join(METHODS)}, got {quoted(method)}"
        f"{hint or '.'}"
    )
    return None


def _written(reading: Reading, content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the type of what is written."""
    given = {key: content.get(key) for key in ("dtype", "out_dtype")}
    for key, value in given.items():
        if value is not None and value not in FLOATS:
            reading.problems.append(
                f"{key}: expected one of {', '.join(FLOATS)}, got {quoted(value)}"
                f"{did_you_mean(str(value), FLOATS) or '.'}"
            )
    chosen = given["out_dtype"] or given["dtype"]
    return {} if chosen is None else {"dtype": chosen}


def _tokenizer(
    reading: Reading,
    content: Mapping[Any, Any],
    base: str | None,
    models: Sequence[str],
) -> dict[str, Any]:
    """Return the model whose tokenizer is taken."""
    older, given = content.get("tokenizer_source"), content.get("tokenizer")
    if older is not None and given is not None:
        reading.problems.append(
            "tokenizer: expected tokenizer or tokenizer_source, got both. Give one."
        )
        return {}
    where = "tokenizer_source"
    source = older
    if given is not None:
        where = "tokenizer.source"
        inner = given if isinstance(given, Mapping) else {}
        for key in ("tokens", "pad_to_multiple_of"):
            if inner.get(key) is not None:
                reading.problems.append(
                    f"tokenizer.{key}: expected no such key, which there is in "
                    "mergekit only. Bring all models to one vocabulary first."
                )
        others = {k: v for k, v in inner.items() if k not in _TOKENIZER}
        check_keys(reading, others, _TOKENIZER, "tokenizer.")
        source = inner.get("source", "union")
    if source is None:
        return {}
    if source in ("union", "base"):
        # All vocabularies have to be one in any case.
        return {"tokenizer": base or models[0]}
    name = model_path(reading, source, where)
    return {} if name is None else {"tokenizer": name}
