"""Families: the kinds of merges that a recipe may ask for, and the keys of each.

Networks trained apart are matched; fine-tunes of one base are merged leaf by leaf. A
recipe with a `base`, or with a method that only fine-tunes have, is of the second kind.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jmudsc.checkpoints.dtypes import FLOATS
from jmudsc.checkpoints.hugging_face import SHARD_SIZE
from jmudsc.finetunes import options as finetunes
from jmudsc.finetunes.methods import FINETUNE_METHODS, is_method, method_problems
from jmudsc.finetunes.options import FinetuneOptions
from jmudsc.lora.merge_loras import FULL
from jmudsc.lora.spaces import SPACES
from jmudsc.matching.methods import METHODS
from jmudsc.merging import options as matching
from jmudsc.merging.option_values import one_of, quoted, Reader
from jmudsc.merging.options import MergeOptions, Option
from jmudsc.recipes.import_path import read_import_path
from jmudsc.recipes.source import read_base
from jmudsc.recipes.yaml_keys import path_text

Options = MergeOptions | FinetuneOptions


@dataclass(frozen=True)
class Family:
    """One kind of merge that a recipe may ask for.

    Attributes:
        keys: the keys that a recipe of this kind has beside those that all have -> what
            reads each.
        functions: those of them that are import paths of functions.
        required: the keys that there must be.
        fewest: how many models there must be.
        needs_batches: whether there must be batches.
        options: values of keys -> what decides the merge.
        problems: (options, number of models) -> what is wrong with them, whatever
            leaves there are.
        dumped: options -> the keys that are written down, as plain values.
        with_functions: (options, functions by key) -> the options with them.
    """

    keys: Mapping[str, Reader]
    functions: tuple[str, ...]
    required: tuple[str, ...]
    fewest: int
    needs_batches: bool
    options: Callable[[Mapping[str, Any]], Any]
    problems: Callable[[Any, int], list[str]]
    dumped: Callable[[Any], dict[str, Any]]
    with_functions: Callable[[Any, Mapping[str, Any]], Any]


def family_of(options: Options) -> Family:
    """Return the family of a merge by what decides it."""
    return FAMILIES[type(options)]


def family_for(content: Mapping[Any, Any]) -> Family:
    """Return the family of the recipe with some keys and plain values."""
    method = content.get("method")
    is_theirs = isinstance(method, Mapping) or is_method(method)
    if content.get("base") is not None or (is_theirs and method not in METHODS):
        return FINETUNED
    return MATCHED


def _plain_keys(options: Mapping[str, Option]) -> dict[str, Reader]:
    return {
        name: option.read
        for name, option in options.items()
        if option.in_recipe == "value" and option.read
    }


def _functions(options: Mapping[str, Option]) -> tuple[str, ...]:
    return tuple(
        n for n, option in options.items() if option.in_recipe == "import path"
    )


def _matched_options(values: Mapping[str, Any]) -> MergeOptions:
    return MergeOptions(**{n: x for n, x in values.items() if n in _MATCHED_KEYS})


def _matched_problems(options: MergeOptions, models: int) -> list[str]:
    weights = options.weights
    if not weights or len(weights) == models:
        return []
    return [
        f"weights: expected {models} values, one for each model, got {len(weights)}. "
        "Leave them out for equal shares."
    ]


def _finetuned_method(value: Any) -> Any:
    wrong = [
        line for name in finetunes.names_in(value) for line in method_problems(name)
    ]
    if wrong:
        raise ValueError(_sentence(wrong[0].removeprefix("method: ")))
    return value


def _as_it_is(value: Any) -> Any:
    """Leave what is right or wrong only with the method and the number of models."""
    return value


def _finetuned_options(values: Mapping[str, Any]) -> FinetuneOptions:
    settings = {name: values[name] for name in values if name in _SETTINGS}
    common = {name: values[name] for name in values if name in _COMMON_KEYS}
    method = {"method": values["method"]} if "method" in values else {}
    return FinetuneOptions(
        settings=finetunes.respelled("recipe", settings),
        common=finetunes.Common(**common),
        **method,
    )


def _finetuned_problems(options: FinetuneOptions, models: int) -> list[str]:
    return list(map(_sentence, options.problems(models)))


def _sentence(line: str) -> str:
    return line if line.endswith(("?", ".")) else f"{line}."


def _with_common(
    options: FinetuneOptions, functions: Mapping[str, Any]
) -> FinetuneOptions:
    common = dataclasses.replace(options.common, **functions)
    return dataclasses.replace(options, common=common)


def _shard_size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"expected a whole number of bytes, got {quoted(value)}. Leave it out for "
            f"{SHARD_SIZE}."
        )
    return value


_MATCHED_KEYS = _plain_keys(matching.OPTIONS)
_COMMON_KEYS = _plain_keys(finetunes.COMMON)
_SETTINGS = (*finetunes.METHOD_OPTIONS, *finetunes.SPELLINGS, *finetunes.IGNORED)

MATCHED = Family(
    keys={
        "apply_fn": read_import_path,
        **dict.fromkeys(_functions(matching.OPTIONS), read_import_path),
        **_MATCHED_KEYS,
        "method": one_of((*METHODS, *FINETUNE_METHODS)),
        "spec": path_text,
    },
    functions=_functions(matching.OPTIONS),
    required=("models", "apply_fn", "output"),
    fewest=2,
    needs_batches=True,
    options=_matched_options,
    problems=_matched_problems,
    dumped=matching.dumped,
    with_functions=lambda options, functions: dataclasses.replace(options, **functions),
)
FINETUNED = Family(
    keys={
        "base": read_base,
        "dtype": one_of(FLOATS),
        "tokenizer": path_text,
        "shard_size": _shard_size,
        "space": one_of((FULL, *SPACES)),
        "method": _finetuned_method,
        **dict.fromkeys(_SETTINGS, _as_it_is),
        **_COMMON_KEYS,
        "apply_fn": read_import_path,
        **dict.fromkeys(_functions(finetunes.COMMON), read_import_path),
    },
    functions=_functions(finetunes.COMMON),
    required=("models", "output"),
    fewest=1,
    needs_batches=False,
    options=_finetuned_options,
    problems=_finetuned_problems,
    dumped=finetunes.dumped,
    with_functions=_with_common,
)
FAMILIES: Mapping[type, Family] = {MergeOptions: MATCHED, FinetuneOptions: FINETUNED}
