"""Recipe: everything that decides one merge of checkpoints, as a YAML file.

```yaml
models:
  - path: runs/a/checkpoints/100        # any orbax checkpoint
  - path: runs/b/checkpoints/100
    subtree: [params, batch_stats]      # take only this of a larger state
  - path: runs/c.safetensors            # or a .safetensors, .npz or .msgpack file
    rename: {"*/weight": "*/kernel"}    # where its leaves have other names
apply_fn: my_model:apply_fn             # (variables, batch) -> outputs
update_fn: my_model:update_fn           # optional: resets running statistics
batches: {factory: my_data:calibration, size: 100}
method: mudsc-zip
alpha: 0.5
frozen: [params/stem/*]                 # optional: labels and leaves to keep in place
separate: [params/head/*]               # optional: leaves that each model keeps
losses: {digits: my_data:digits_loss}   # optional: to evaluate and draw by
output: merged
```

In the place of `batches`, every model may have its own, of its own task: the refit then
knows which model to follow on them.

A reference is `module:name`, the object itself, or `{factory: module:name, ...}`, what
the named function returns when called with the other keys.
"""

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jmudsc.checkpoints.renaming import check_rename
from jmudsc.matching.methods import METHODS
from jmudsc.matching.multi_model import REFERENCES
from jmudsc.merging.alpha_search import CHOICES
from jmudsc.paths import did_you_mean
from jmudsc.recipes.yaml_keys import is_number, read_keys, read_yaml, Reader, refuse
from jmudsc.repairs.least_squares import RIDGE
from jmudsc.repairs.table import names_of


@dataclass(frozen=True)
class Reference:
    """A Python object named in a recipe.

    Attributes:
        name: `module:name`, the name possibly dotted.
        args: None for the object itself, keyword arguments for what it returns.
    """

    name: str
    args: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Source:
    """One model of a recipe.

    Attributes:
        path: its checkpoint.
        subtree: the part of the checkpoint that is the variables; None for all of it.
        batches: calibration batches of its own task, a re-iterable; None where the
            recipe has batches of all tasks.
        rename: patterns of its leaf paths and the new path of each, as for `load`.
        separator: what its names are split at, as for `load`.
    """

    path: str
    subtree: str | tuple[str, ...] | None = None
    batches: Reference | None = None
    rename: tuple[tuple[str, str | None], ...] = ()
    separator: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one merge.

    Attributes:
        models: the parents, two or more.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        batches: the calibration batches of all tasks, a re-iterable; None where every
            model has its own.
        output: the directory or file to write, as for `save`.
        update_fn: `(variables, batch) -> variables`, resets running statistics.
        method: one of `METHODS`.
        alpha: the balance, share of the weight similarity in [0, 1], or one of
            `CHOICES`.
        score: with `search`, `(variables) -> float`, larger is better.
        weights: the share of each model in the average; None for equal shares.
        reference: what more than two models are aligned to, one of `REFERENCES`.
        refit: how maps are fitted after averaging: `least-squares`; None for not.
        ridge: strength of the refit's penalty.
        repair: `rescale` or `pooled`; None for neither.
        seed: of the PRNG key.
        spec: a file with a spec as `jmudsc spec` prints it; None to derive it.
        frozen: patterns of labels and leaves whose units stay in place.
        separate: patterns of leaves that every model keeps for itself.
        losses: task -> `(variables) -> float`, smaller is better; where leaves are
            separate, one task for each model, in their order, of its own variables.
            They do not decide the merge.
        folder: what relative paths are relative to: the folder of the recipe.
    """

    models: tuple[Source, ...]
    apply_fn: Reference
    batches: Reference | None
    output: str
    update_fn: Reference | None = None
    method: str = "mudsc-zip"
    alpha: float | str = 0.5
    score: Reference | None = None
    weights: tuple[float, ...] | None = None
    reference: str = "first"
    refit: str | None = None
    ridge: float = RIDGE
    repair: str | None = None
    seed: int = 0
    spec: str | None = None
    frozen: tuple[str, ...] = ()
    separate: tuple[str, ...] = ()
    losses: Mapping[str, Reference] | None = None
    folder: Path = field(default=Path(), compare=False)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        path: a YAML file.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML mapping, or listing every key that is unknown,
            missing or has a wrong value.
    """
    path = Path(path)
    content = read_yaml(path, "a recipe is needed.")
    return dataclasses.replace(
        parse_recipe(content, str(path)), folder=path.absolute().parent
    )


def parse_recipe(content: Any, where: str = "recipe") -> Recipe:
    """Build a recipe from plain values.

    Args:
        content: the keys of a recipe and their values.
        where: what to call it in an error.

    Returns:
        The recipe.

    Raises:
        ValueError: listing every key that is unknown, missing or has a wrong value.
    """
    values, problems = parse_keys(content, where)
    refuse(where, problems)
    return Recipe(**values)


def parse_keys(content: Any, where: str = "recipe") -> tuple[dict[str, Any], list[str]]:
    """Read what can be read of a recipe.

    Args:
        content: the keys of a recipe and their values.
        where: what to call it in an error.

    Returns:
        The values of the keys that are right, and what is wrong with the others.

    Raises:
        ValueError: if the content is no mapping.
    """
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(
            f"{where}: is a {kind}, a mapping of keys to values is needed."
        )
    required = ("models", "apply_fn", "output")
    values, problems = read_keys(content, _READERS, required)
    models, weights = values.get("models"), values.get("weights")
    if models and (problem := _batches_problem(models, "batches" in content)):
        problems.append(problem)
    if models and weights and len(models) != len(weights):
        problems.append(f'"weights" has {len(weights)} values for {len(models)} models')
    losses = values.get("losses")
    if models and losses and values.get("separate") and len(losses) != len(models):
        problems.append(
            f'"losses" has {len(losses)} tasks for {len(models)} models, with '
            '"separate" there must be one for each'
        )
    return {"batches": None, **values}, problems


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML that `read_recipe` reads back.

    Args:
        recipe: the recipe.

    Returns:
        The text.
    """
    content: dict[str, Any] = {
        "models": [_plain_source(source) for source in recipe.models],
        "apply_fn": _plain_reference(recipe.apply_fn),
    }
    if recipe.batches is not None:
        content["batches"] = _plain_reference(recipe.batches)
    if recipe.update_fn is not None:
        content["update_fn"] = _plain_reference(recipe.update_fn)
    content |= {"method": recipe.method, "alpha": recipe.alpha}
    if recipe.score is not None:
        content["score"] = _plain_reference(recipe.score)
    if recipe.weights is not None:
        content["weights"] = list(recipe.weights)
    if recipe.reference != "first":
        content["reference"] = recipe.reference
    if recipe.spec is not None:
        content["spec"] = recipe.spec
    if recipe.frozen:
        content["frozen"] = list(recipe.frozen)
    if recipe.separate:
        content["separate"] = list(recipe.separate)
    if recipe.refit is not None:
        content |= {"refit": recipe.refit, "ridge": recipe.ridge}
    if recipe.repair is not None:
        content["repair"] = recipe.repair
    if recipe.losses is not None:
        plain = {task: _plain_reference(x) for task, x in recipe.losses.items()}
        content["losses"] = plain
    content |= {"seed": recipe.seed, "output": recipe.output}
    return yaml.safe_dump(content, sort_keys=False)


def resolve(reference: Reference, folder: Path) -> Any:
    """Import what a reference names.

    Modules are looked for in `folder` too, beside a recipe's own code.

    Args:
        reference: from a recipe.
        folder: the folder of the recipe.

    Returns:
        The object, or what it returns.

    Raises:
        ValueError: if the module or the name in it is not there, or the arguments do
            not fit; a text to go after the key of the recipe.
    """
    module_name, _, name = reference.name.partition(":")
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name.split(".")[0] and error.name != module_name:
            raise
        raise ValueError(
            f'names the module "{module_name}", which is neither installed nor in '
            f"{folder}; install it or correct the name"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, dir(found))
            raise ValueError(
                f'names "{reference.name}", but {module_name} has no "{part}"{hint}'
            )
        found = getattr(found, part)
    if reference.args is None:
        return found
    try:
        inspect.signature(found).bind(**reference.args)
    except TypeError as error:
        given = ", ".join(reference.args) or "no arguments"
        raise ValueError(
            f'names "{reference.name}", which cannot be called with {given}: {error}'
        ) from error
    return found(**reference.args)


def _models(value: Any) -> tuple[Source, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise ValueError(f"is {value!r}, it must be a list of two or more models")
    problems, sources = [], []
    for number, entry in enumerate(value):
        entry = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            problems.append(f"entry {number} has no path")
            continue
        problems += [
            f'entry {number} has the unknown key "{key}"'
            f"{did_you_mean(str(key), _SOURCE_READERS)}"
            for key in entry
            if key not in _SOURCE_READERS
        ]
        values = {}
        for key in [key for key in entry if key in _SOURCE_READERS]:
            try:
                values[key] = _SOURCE_READERS[key](entry[key])
            except ValueError as error:
                what = "batches: it" if key == "batches" else f"a {key} that"
                problems.append(f"entry {number} has {what} {error}")
        sources.append(Source(**values))
    if problems:
        raise ValueError(": ".join(["must be corrected", "; ".join(problems)]))
    return tuple(sources)


def _batches_problem(models: Sequence[Source], shared: bool) -> str | None:
    """Say what is wrong with where batches are given, if anything is."""
    without = [str(n) for n, source in enumerate(models) if source.batches is None]
    if shared and len(without) < len(models):
        return '"batches" is given and models have batches too, only one can be'
    if not shared and len(without) == len(models):
        return '"batches" is missing, here or for each of the models'
    if not shared and without:
        return f"the models {', '.join(without)} have no batches, the others do"
    return None


def _reference(value: Any) -> Reference:
    name, args = value, None
    if isinstance(value, dict):
        args = {key: arg for key, arg in value.items() if key != "factory"}
        name = value.get("factory")
    if not isinstance(name, str) or not all(name.partition(":")):
        raise ValueError(
            f'is {value!r}, it must be "module:name" or {{factory: "module:name", ...}}'
        )
    return Reference(name, args)


def _losses(value: Any) -> dict[str, Reference]:
    named = value
    if isinstance(value, list):
        named = {f"task {chr(65 + n)}": loss for n, loss in enumerate(value)}
    if not isinstance(named, dict) or not named or not all(map(_is_name, named)):
        raise ValueError(
            f"is {value!r}, it must be a mapping of names of tasks to references, or a "
            'list of references; "sum" is no name of a task'
        )
    return {task: _reference(loss) for task, loss in named.items()}


def _is_name(task: Any) -> bool:
    return isinstance(task, str) and task not in ("", "sum")


def _one_of(known: Sequence[str], value: Any) -> str:
    if value not in known:
        hint = did_you_mean(str(value), known)
        raise ValueError(f"is {value!r}{hint}; it must be one of {', '.join(known)}")
    return value


def _balance(value: Any) -> float | str:
    if value in CHOICES:
        return value
    if not is_number(value) or not 0 <= value <= 1:
        choices = " or ".join(CHOICES)
        raise ValueError(f"is {value!r}, it must be a number in [0, 1], or {choices}")
    return float(value)


def _above_zero(value: Any) -> float:
    if not is_number(value) or value <= 0:
        raise ValueError(f"is {value!r}, it must be a number above 0")
    return float(value)


def _weights(value: Any) -> tuple[float, ...]:
    good = isinstance(value, list) and all(is_number(v) and v >= 0 for v in value)
    if not good or not any(value):
        raise ValueError(
            f"is {value!r}, it must be a list of numbers >= 0, one per model, not all 0"
        )
    return tuple(float(v) for v in value)


def _patterns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(v and isinstance(v, str) for v in value):
        raise ValueError(f"is {value!r}, it must be a list of label or leaf patterns")
    return tuple(value)


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise ValueError(f"is {value!r}, it must be a whole number in [0, 2**32)")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"is {value!r}, it must be a path")
    return value


def _subtree(value: Any) -> str | tuple[str, ...] | None:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    if not isinstance(value, str | None):
        raise ValueError("is no name or list")
    return value


def _rename(value: Any) -> tuple[tuple[str, str | None], ...]:
    if not isinstance(value, dict) or not all(
        old and isinstance(old, str) and (new is None or isinstance(new, str))
        for old, new in value.items()
    ):
        raise ValueError("is no mapping of patterns to new paths, or null to leave out")
    if problems := check_rename(value):
        raise ValueError(f"is wrong: {', '.join(problems)}")
    return tuple(value.items())


def _separator(value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError('is no text; "" is for none')
    return value


_SOURCE_READERS: dict[str, Reader] = {
    "path": _text,
    "subtree": _subtree,
    "batches": _reference,
    "rename": _rename,
    "separator": _separator,
}

_READERS: dict[str, Reader] = {
    "models": _models,
    "apply_fn": _reference,
    "batches": _reference,
    "update_fn": _reference,
    "method": lambda value: _one_of(METHODS, value),
    "alpha": _balance,
    "score": _reference,
    "weights": _weights,
    "reference": lambda value: _one_of(REFERENCES, value),
    "refit": lambda value: _one_of(names_of("refit"), value),
    "ridge": _above_zero,
    "repair": lambda value: _one_of(names_of("repair"), value),
    "seed": _seed,
    "spec": _text,
    "frozen": _patterns,
    "separate": _patterns,
    "losses": _losses,
    "output": _text,
}


def _plain_source(source: Source) -> dict[str, Any]:
    content: dict[str, Any] = {"path": source.path}
    subtree = source.subtree
    if subtree is not None:
        content["subtree"] = list(subtree) if isinstance(subtree, tuple) else subtree
    if source.batches is not None:
        content["batches"] = _plain_reference(source.batches)
    if source.rename:
        content["rename"] = dict(source.rename)
    if source.separator is not None:
        content["separator"] = source.separator
    return content


def _plain_reference(reference: Reference) -> Any:
    if reference.args is None:
        return reference.name
    return {"factory": reference.name, **reference.args}
