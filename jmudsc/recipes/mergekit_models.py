"""mergekit models: those that a configuration of mergekit names, on this machine."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmudsc.checkpoints.hugging_face import config_of, is_model
from jmudsc.checkpoints.urls import AnyPath
from jmudsc.merging.option_values import quoted
from jmudsc.paths import did_you_mean
from jmudsc.recipes.hub_cache import cached
from jmudsc.recipes.mergekit_methods import Translation

# What is there in mergekit, and not here, with what to do.
_REFUSED = {
    "modules": "Merge one module at a time, or name the leaves in filters.",
    "chat_template": "Copy the template that you want into the output.",
    "residual_weight": "Leave it out.",
}
# A model, and its parameters: its own, then those of its slice.
Entry = tuple[str, list[Any]]


@dataclass(frozen=True)
class Reading:
    """A configuration while it is read.

    Attributes:
        folder: that of the file.
        problems: what is wrong.
        notes: what makes no difference here.
    """

    folder: AnyPath
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_keys(
    reading: Reading, content: Mapping[Any, Any], known: Sequence[str], where: str
) -> None:
    """Note the keys of a mapping that are not known.

    Args:
        reading: is added to.
        content: the mapping.
        known: the keys that there may be.
        where: what goes before a key, for errors.
    """
    for key in content:
        if key in _REFUSED:
            reading.problems.append(
                f"{where}{key}: expected no such key, which there is in mergekit only. "
                f"{_REFUSED[key]}"
            )
        elif key not in known:
            hint = did_you_mean(str(key), known) or "."
            reading.problems.append(f"{where}{key}: there is no such key{hint}")


def model_path(reading: Reading, value: Any, where: str) -> str | None:
    """Return the path of a model that is on this machine.

    Args:
        reading: is added to if there is none.
        value: what names the model.
        where: the key, for errors.

    Returns:
        The path, relative to the folder of the configuration if it is there; None if
        there is no such model, or no name.
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        inner = value.get("model", value)
        extra = [key for key in ("lora", "revision") if _has(value, inner, key)]
        if extra:
            reading.problems.append(
                f"{where}: expected the path of a whole model, got one with "
                f"{' and '.join(extra)}. Fold adapters first, and name the directory."
            )
            return None
        value = inner.get("path") if isinstance(inner, Mapping) else inner
    if not isinstance(value, str) or not value:
        reading.problems.append(
            f"{where}: expected the path of a model, got {quoted(value)}. Write it as "
            "text."
        )
        return None
    for place in (reading.folder / os.path.expanduser(value), Path(value).absolute()):
        if place.exists():
            is_here = place == reading.folder / value
            return os.path.normpath(value) if is_here else str(place)
    if found := cached(value):
        return str(found)
    if "+" in value:
        advice = "Fold the adapter after the + into the model first."
    else:
        advice = "Download it first: nothing is fetched here."
    reading.problems.append(
        f'{where}: expected a model on this machine, got "{value}". {advice}'
    )
    return None


def _has(value: Mapping[Any, Any], inner: Any, key: str) -> bool:
    also = inner.get(key) if isinstance(inner, Mapping) else None
    return value.get(key) is not None or also is not None


def entries_of(reading: Reading, content: Mapping[Any, Any]) -> list[Entry]:
    """Return the models that are to be merged.

    Args:
        reading: is added to.
        content: the configuration.
    """
    given = [key for key in ("models", "slices") if content.get(key) is not None]
    if len(given) != 1:
        got = "both" if given else "none"
        reading.problems.append(
            f"models: expected models or slices, got {got}. Give one of the two."
        )
        return []
    if given == ["slices"]:
        return _of_slices(reading, content["slices"])
    return _listed_models(reading, content["models"], "models", ("model", "parameters"))


def _listed_models(
    reading: Reading, entries: Any, where: str, keys: Sequence[str]
) -> list[Entry]:
    if not isinstance(entries, list) or not entries:
        reading.problems.append(
            f"{where}: expected a list of models, got {quoted(entries)}. Write one per "
            "line."
        )
        return []
    found = []
    for number, entry in enumerate(entries):
        here = f"{where}[{number}]"
        if not isinstance(entry, Mapping):
            reading.problems.append(
                f"{here}: expected a mapping with the key model, got {quoted(entry)}. "
                "Write model: PATH."
            )
            continue
        check_keys(reading, entry, keys, f"{here}.")
        if "model" not in entry:
            reading.problems.append(f"{here}.model: this key is missing.")
            continue
        name = model_path(reading, entry["model"], f"{here}.model")
        if name is not None:
            found.append((name, [entry.get("parameters")]))
    return found


def _of_slices(reading: Reading, slices: Any) -> list[Entry]:
    """Return the models of a single slice of all layers."""
    if not isinstance(slices, list) or len(slices) != 1:
        reading.problems.append(
            f"slices: expected one slice of all layers, got "
            f"{len(slices) if isinstance(slices, list) else quoted(slices)}. Merges of "
            "other layers into another depth are not there here; give values by layer "
            "as lists, or by filters."
        )
        return []
    one = slices[0] if isinstance(slices[0], Mapping) else {}
    known = ("sources", "parameters")
    check_keys(reading, one, known, "slices[0].")
    where = "slices[0].sources"
    keys = ("model", "layer_range", "parameters")
    models = _listed_models(reading, one.get("sources"), where, keys)
    if reading.problems:
        return models
    for number, (name, _) in enumerate(models):
        has = one["sources"][number].get("layer_range")
        place = Path(reading.folder / name)
        layers = config_of(place).get("num_hidden_layers") if is_model(place) else None
        if layers is not None and has != [0, layers]:
            reading.problems.append(
                f"{where}[{number}].layer_range: expected all layers, [0, {layers}], "
                f"got {quoted(has)}. Merges of some layers are not there here."
            )
    return [(name, [*own, one.get("parameters")]) for name, own in models]


def arranged(
    reading: Reading,
    row: Translation,
    entries: list[Entry],
    base: str | None,
) -> list[Entry]:
    """Return the models in the order that they have here, without the base.

    Args:
        reading: is added to.
        row: the method.
        entries: the models as they are given.
        base: what `base_model` names.
    """
    if row.base in ("needed", "first") and base is None:
        reading.problems.append(
            f"base_model: expected a model, which {row.here} needs, got none. Add it."
        )
    if row.most is not None and len(entries) > row.most:
        reading.problems.append(
            f"models: expected {row.most}, got {len(entries)}. Leave out the others."
        )
    others = [entry for entry in entries if entry[0] != base]
    own = [entry for entry in entries if entry[0] == base]
    if base is None or row.base in ("needed", "optional"):
        return others
    if row.base == "first":
        return [*(own or [(base, [])]), *others]
    return entries if own else [*entries, (base, [])]
