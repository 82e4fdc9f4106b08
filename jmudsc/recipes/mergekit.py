"""mergekit: a configuration of mergekit as the recipe of a merge of fine-tunes.

What its keys mean is documented in its repository; docs/mergekit.md says what is done
otherwise here, and why. Everything that is not understood is refused by name.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jmudsc.checkpoints.dtypes import FLOATS
from jmudsc.checkpoints.hugging_face import config_of, is_model
from jmudsc.merging.option_values import quoted
from jmudsc.paths import did_you_mean
from jmudsc.recipes.hub_cache import cached
from jmudsc.recipes.mergekit_methods import METHODS, Parameter, Translation
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
# What is there in mergekit, and not here, with what to do.
_REFUSED = {
    "modules": "merge one module at a time, or name the leaves in filters",
    "chat_template": "copy the template that you want into the output",
}
# A filter that matches everything.
_ALL = "*"

# What is given for a parameter, in the order in which it is looked for: the filter,
# None for all leaves, and the value.
Cases = list[tuple[str | None, Any]]


@dataclass(frozen=True)
class _Reading:
    """A configuration while it is read.

    Attributes:
        folder: that of the file.
        problems: what is wrong.
        notes: what makes no difference here.
    """

    folder: Path
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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


def translated(content: Mapping[Any, Any], where: str, folder: Path) -> Translated:
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
    reading = _Reading(folder)
    _check_keys(reading, content, _KEYS, "")
    row = _row(reading, content.get(_METHOD))
    entries = _entries(reading, content)
    base = _name(reading, content.get("base_model"), "base_model")
    if row is None or not entries:
        refuse(where, reading.problems)
        raise AssertionError("unreachable: something is wrong")
    models = _arranged(reading, row, entries, base)
    recipe: dict[str, Any] = {"method": row.here}
    if row.base in ("needed", "optional") and base is not None:
        recipe["base"] = base
    recipe["models"] = [name for name, _ in models]
    recipe |= _settings(reading, row, models, content.get("parameters"))
    recipe |= _written(reading, content)
    recipe |= _tokenizer(reading, content, base, recipe["models"])
    if "output" in content:
        recipe["output"] = content["output"]
    refuse(where, reading.problems)
    return Translated(recipe, tuple(dict.fromkeys(reading.notes)))


def _check_keys(
    reading: _Reading, content: Mapping[Any, Any], known: Sequence[str], where: str
) -> None:
    for key in content:
        if key in _REFUSED:
            reading.problems.append(
                f"{where}{key}: expected no such key, which is not there here; "
                f"{_REFUSED[key]}."
            )
        elif key not in known:
            hint = did_you_mean(str(key), known) or "."
            reading.problems.append(f"{where}{key}: there is no such key{hint}")


def _row(reading: _Reading, method: Any) -> Translation | None:
    if method in METHODS:
        return METHODS[method]
    hint = did_you_mean(str(method), METHODS)
    reading.problems.append(
        f"{_METHOD}: expected one of {', '.join(METHODS)}, got {quoted(method)}"
        f"{hint or '.'}"
    )
    return None


def _name(reading: _Reading, value: Any, where: str) -> str | None:
    """Return the path of a model that is on this machine."""
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


def _entries(
    reading: _Reading, content: Mapping[Any, Any]
) -> list[tuple[str, list[Any]]]:
    """Return each model with its parameters, those of a slice after its own."""
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
    reading: _Reading, entries: Any, where: str, keys: Sequence[str]
) -> list[tuple[str, list[Any]]]:
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
        _check_keys(reading, entry, keys, f"{here}.")
        if "model" not in entry:
            reading.problems.append(f"{here}.model: this key is missing.")
            continue
        name = _name(reading, entry["model"], f"{here}.model")
        found.append((name or "", [entry.get("parameters")]))
    return found


def _of_slices(reading: _Reading, slices: Any) -> list[tuple[str, list[Any]]]:
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
    _check_keys(reading, one, known, "slices[0].")
    where = "slices[0].sources"
    keys = ("model", "layer_range", "parameters")
    models = _listed_models(reading, one.get("sources"), where, keys)
    if reading.problems:
        return models
    for number, (name, _) in enumerate(models):
        has = one["sources"][number].get("layer_range")
        place = reading.folder / name
        layers = config_of(place).get("num_hidden_layers") if is_model(place) else None
        if layers is not None and has != [0, layers]:
            reading.problems.append(
                f"{where}[{number}].layer_range: expected all layers, [0, {layers}], "
                f"got {quoted(has)}. Merges of some layers are not there here."
            )
    return [(name, [*own, one.get("parameters")]) for name, own in models]


def _arranged(
    reading: _Reading,
    row: Translation,
    entries: list[tuple[str, list[Any]]],
    base: str | None,
) -> list[tuple[str, list[Any]]]:
    """Return the models in the order that they have here, without the base."""
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


def _settings(
    reading: _Reading,
    row: Translation,
    models: Sequence[tuple[str, list[Any]]],
    shared: Any,
) -> dict[str, Any]:
    """Return the options that parameters are."""
    of_slice = list(models[0][1][1:])  # what comes after the parameters of a model
    for where, given in [("parameters", shared), *(("slice", x) for x in of_slice)]:
        _check_parameters(reading, row.parameters, where, given)
    own = [each for each in row.parameters if each.per_model]
    for name, levels in models:
        for given in levels[:1]:
            _check_parameters(reading, own, f"parameters of {name}", given)
    settings = dict(row.settings or {})
    for parameter in row.parameters:
        if parameter.here is None:
            _setting(reading, parameter, [*of_slice, shared], None)
        elif parameter.per_model:
            each = [
                _setting(reading, parameter, [*levels, shared], name)
                for name, levels in models
            ]
            settings[parameter.here] = _of_models(reading, parameter, each)
        else:
            value = _setting(reading, parameter, [*of_slice, shared], None)
            settings[parameter.here] = value
    if "epsilon" in settings and settings.get("density") == 1:
        settings["epsilon"] = 0.0  # nothing is dropped, whatever its chances
    return settings


def _of_models(reading: _Reading, parameter: Parameter, each: list[Any]) -> Any:
    """Return one setting for what each model has."""
    is_same = all(value == each[0] for value in each)
    if parameter.is_one:
        if not is_same:
            reading.problems.append(
                f"{parameter.name}: expected one value for all models, got "
                f"{', '.join(map(str, each))}. Choose one."
            )
        return each[0]
    # A list would be taken for one value for each model.
    is_plain = not isinstance(each[0], list | Mapping)
    return each[0] if is_same and is_plain else each


def _check_parameters(
    reading: _Reading, parameters: Sequence[Parameter], where: str, given: Any
) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping):
        reading.problems.append(
            f"{where}: expected a mapping, got {quoted(given)}. Write one parameter "
            "per line."
        )
        return
    known = [parameter.name for parameter in parameters]
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "no parameters"
            hint = did_you_mean(str(name), known) or "."
            reading.problems.append(
                f"{where}: expected one of {takes}, got {quoted(name)}{hint}"
            )
    unused = [x.name for x in parameters if x.here is None and x.name in given]
    for name in unused:
        reading.notes.append(f"{name} makes no difference here, and is left out.")


def _setting(
    reading: _Reading, parameter: Parameter, levels: Sequence[Any], model: str | None
) -> Any:
    """Return a parameter's value, a list over depth, or patterns with values."""
    name = parameter.name
    where = name if model is None else f"{name} of {model}"
    cases: Cases = []
    for level in levels:
        if isinstance(level, Mapping) and level.get(name) is not None:
            cases += _cases(reading, parameter, level[name], where)
    patterns: dict[str, Any] = {}
    for text, value in cases:
        if text is None:
            return {**patterns, _ALL: value} if patterns else value
        patterns.setdefault(f"*{_escaped(text)}*", value)
    if parameter.needed:
        reading.problems.append(
            f"{where}: expected a value for every leaf, got "
            f"{'one only where filters match' if patterns else 'none'}. Add one "
            "without a filter."
        )
    return {**patterns, _ALL: parameter.default} if patterns else parameter.default


def _cases(reading: _Reading, parameter: Parameter, given: Any, where: str) -> Cases:
    """Return the filters and values of one level, the first that matches first."""
    several = given if isinstance(given, list) else [given]
    conditional = [entry for entry in several if isinstance(entry, Mapping)]
    if conditional and len(conditional) < len(several):
        reading.problems.append(
            f"{where}: expected values, or mappings with filter and value, got both in "
            "one list. Choose one."
        )
        return []
    if not conditional:
        return [(None, _value(reading, parameter, given, where))]
    cases: Cases = []
    for entry in conditional:
        _check_keys(reading, entry, ("filter", "value"), f"{where}.")
        chosen = entry.get("filter")
        text = None if chosen in (None, _ALL) else str(chosen)
        cases.append((text, _value(reading, parameter, entry.get("value"), where)))
    return cases


def _value(reading: _Reading, parameter: Parameter, given: Any, where: str) -> Any:
    values = given if isinstance(given, list) else [given]
    try:
        read = [parameter.value(value) for value in values]
    except ValueError:
        reading.problems.append(
            f"{where}: expected {parameter.expected}, got {quoted(given)}. Correct it."
        )
        return None
    return read if isinstance(given, list) else read[0]


def _escaped(text: str) -> str:
    """Return a pattern that matches a text as it is."""
    return "".join(f"[{x}]" if x in "*?[" else x for x in text)


def _written(reading: _Reading, content: Mapping[Any, Any]) -> dict[str, Any]:
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
    reading: _Reading,
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
                    f"tokenizer.{key}: expected no such key, which is not there here; "
                    "bring all models to one vocabulary first."
                )
        others = {k: v for k, v in inner.items() if k not in _TOKENIZER}
        _check_keys(reading, others, _TOKENIZER, "tokenizer.")
        source = inner.get("source", "union")
    if source is None:
        return {}
    if source in ("union", "base"):
        # All vocabularies have to be one in any case.
        return {"tokenizer": base or models[0]}
    name = _name(reading, source, where)
    return {} if name is None else {"tokenizer": name}


_TOKENIZER = ("source", "tokens", "pad_to_multiple_of")
