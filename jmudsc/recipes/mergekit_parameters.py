"""mergekit parameters: values, lists over depth and filters, as options here."""

from collections.abc import Mapping, Sequence
from typing import Any

from jmudsc.merging.option_values import quoted
from jmudsc.paths import did_you_mean
from jmudsc.recipes.mergekit_methods import Parameter, Translation
from jmudsc.recipes.mergekit_models import check_keys, Entry, Reading

# A filter that matches everything.
_ALL = "*"
# What is given for a parameter, in the order in which it is looked for: the filter,
# None for all leaves, and the value.
Cases = list[tuple[str | None, Any]]


def settings_of(
    reading: Reading,
    row: Translation,
    models: Sequence[Entry],
    shared: Any,
) -> dict[str, Any]:
    """Return the options that parameters are.

    Args:
        reading: is added to.
        row: the method.
        models: those that are merged, with their parameters.
        shared: the parameters of all.

    Returns:
        Option -> setting.
    """
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


def _of_models(reading: Reading, parameter: Parameter, each: list[Any]) -> Any:
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
    reading: Reading, parameters: Sequence[Parameter], where: str, given: Any
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
    reading: Reading, parameter: Parameter, levels: Sequence[Any], model: str | None
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


def _cases(reading: Reading, parameter: Parameter, given: Any, where: str) -> Cases:
    """Return the filters and values of one level, the first that matches first."""
    several = given if isinstance(given, list) else [given]
    conditional = [entry for entry in several if isinstance(entry, Mapping)]
    if conditional and len(conditional) < len(several):
        reading.problems.append(
            f"{where}: expected values, or mappings with filter and value, got both in "
            "one list. Choose one."
        )
        return [(None, None)]
    if not conditional:
        return [(None, _value(reading, parameter, given, where))]
    cases: Cases = []
    for entry in conditional:
        check_keys(reading, entry, ("filter", "value"), f"{where}.")
        chosen = entry.get("filter")
        text = None if chosen in (None, _ALL) else str(chosen)
        cases.append((text, _value(reading, parameter, entry.get("value"), where)))
    return cases


def _value(reading: Reading, parameter: Parameter, given: Any, where: str) -> Any:
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
