"""Init: a recipe with comments, written after a look at the checkpoints."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jmudsc.checkpoints.formats import ending_of
from jmudsc.checkpoints.urls import is_url
from jmudsc.conversion.convert import reader_of
from jmudsc.paths import listed, plural
from jmudsc.recipes.look import (
    base_among,
    differing,
    look,
    Looked,
    RANDOM,
    Related,
    related,
)

_MODULE = "my_model"
_MOST_LINES = 8

_NO_LEAVES = """\
They have no leaf in common. Give `rename` with the models whose leaves have other
names; networks of several architectures cannot be merged."""
_ONE_START = """\
They were trained from one network, so they are merged leaf by leaf: the median
distance of their matrices is {far} of their size, and of random ones 1.4."""
_STRANGERS = """\
They were trained apart, so their units are matched first: the median distance of
their matrices is {far} of their size, and of random ones 1.4."""
_MATCHED = """
# TO DO: a file {module}.py beside this one, with a function `make` that returns your
# model as the adapter of its library takes it: linen (a module and its variables),
# nnx, equinox, haiku, keras or huggingface.
model: {{adapter: {adapter}, factory: {module}:make}}
# Or, in the place of it, a function (variables, batch) -> outputs in evaluation mode:
# apply_fn: {module}:apply_fn
{update}

# TO DO: in the same file a list of batches of inputs, without labels, from all tasks;
# ten of 100 will do. Better: with each of the models the batches of its own task.
batches: {module}:batches

method: mudsc-zip  # `jmudsc compare` tries several
refit: least-squares  # fits every linear layer to what the parents do on the batches
# score: {module}:score  # (variables) -> float, larger is better"""
_UPDATE = f"# update_fn: {_MODULE}:update_fn  # only for running statistics"
_UPDATE_NEEDED = f"""\
# There are running statistics. The adapter resets them; with apply_fn, this does:
# update_fn: {_MODULE}:update_fn  # (variables, batch) -> variables"""
_WITH_BASE = """
method: task_arithmetic
lambda_: auto  # the mean of what was trained into them, which is safe
# method: wudi  # lets tasks disturb each other less; leave lambda_ out with it"""
_MEAN = """
method: linear  # the mean
# method: wudi  # for models of several tasks, with their base"""


@dataclass(frozen=True)
class Found:
    """What is known of the checkpoints that a recipe is for.

    Attributes:
        models: what was looked at, in the order given.
        pairs: what every two have to do with each other.
        base: the number of the one that the others were trained from, if that is known.
        missing: the leaves that are not in all of them.
        reshaped: the leaves that have several shapes.
    """

    models: Sequence[Looked]
    pairs: Sequence[Related]
    base: int | None
    missing: Sequence[str]
    reshaped: Sequence[str]

    @property
    def is_finetuned(self) -> bool:
        """Whether all were trained from one network."""
        return all(pair.shares_a_start for pair in self.pairs)

    @property
    def shared(self) -> int:
        """How many leaves all of them have."""
        every = {path for model in self.models for path in model.variables}
        return len(every) - len(self.missing)


def init_recipe(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "recipe.yaml",
    *,
    overwrite: bool = False,
) -> str:
    """Write a recipe with comments for some checkpoints.

    Args:
        paths: two checkpoints or more; of each a few matrices are read, which tell
            whether they were trained from one network.
        out: the recipe to write.
        overwrite: replace what is there.

    Returns:
        What was found, and what is to be done next.

    Raises:
        FileExistsError: if there is something at `out`.
        ValueError: if there are fewer than two, or listing all that are no checkpoint.
    """
    target = Path(out)
    if len(paths) < 2:
        raise ValueError(
            f"init: expected two checkpoints or more, got {len(paths)}. Give the paths "
            "of all that are to be merged, and of their base if they have one."
        )
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target}: expected a free path, got one that exists. Choose another with "
            "--out or pass --overwrite."
        )
    found = _found(_looked(paths))
    text = recipe_text(found, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)
    return "\n".join([*_said(found), "", *_next(found, target)])


def recipe_text(found: Found, target: Path) -> str:
    """Write a recipe, all that is uncertain of it in comments.

    Args:
        found: what is known of the checkpoints.
        target: where it is to be: paths are relative to its folder.

    Returns:
        YAML, which `read_recipe` reads.
    """
    lines = [
        f"# `jmudsc plan {target.name}` says what this would do and what is missing or",
        f"# wrong, `jmudsc merge {target.name}` does it.",
        "#",
        *(f"# {line}".rstrip() for line in _said(found)),
    ]
    parts = _finetuned if found.is_finetuned else _apart
    lines += [*parts(found, target), *_separate(found)]
    first = found.models[0]
    lines += ["", f"output: {_scalar('merged' + ending_of(first.path))}"]
    return "\n".join(lines) + "\n"


def _looked(paths: Sequence[str | os.PathLike[str]]) -> list[Looked]:
    """Look at all checkpoints, or list all that are none."""
    models, problems = [], []
    for path in paths:
        if reader_of(path) is not None:
            where = os.fspath(path)
            problems.append(
                f"{where}: expected a checkpoint, got a file of another library. Run "
                f"jmudsc convert {where} --like module:function -o DIRECTORY first."
            )
            continue
        try:
            models.append(look(path))
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError(
            f"init: expected {plural(len(paths), 'checkpoint')}, got {len(problems)} "
            f"that cannot be read. Correct the paths:\n{listed(problems)}"
        )
    return models


def _found(models: Sequence[Looked]) -> Found:
    pairs = related(models)
    missing, reshaped = differing(models)
    return Found(models, pairs, base_among(models, pairs), missing, reshaped)


def _said(found: Found) -> Iterator[str]:
    """Say what was found, one line each."""
    for model in found.models:
        yield f"{model.path}: {model.sentence}"
    yield ""
    for pair in found.pairs:
        if pair.is_same:
            names = _named(found, pair)
            yield f"{names} are the same network: leave out one of them."
    if found.shared == 0:
        yield from _NO_LEAVES.splitlines()
        return
    said = _ONE_START if found.is_finetuned else _STRANGERS
    yield from said.format(far=_range(found)).splitlines()
    if not found.is_finetuned:
        yield from _relatives(found)
    for what, leaves in (
        ("In some of them only", found.missing),
        ("Of several shapes", found.reshaped),
    ):
        if leaves:
            yield ""
            yield f"{what}: {plural(len(leaves), 'leaf', 'leaves')}"
            yield from listed(leaves, _MOST_LINES).splitlines()


def _relatives(found: Found) -> Iterator[str]:
    """Name those that share a start where not all do."""
    for pair in found.pairs:
        if pair.shares_a_start and not pair.is_same:
            yield f"But {_named(found, pair)} were trained from one network:"
            yield "merge those first, by a recipe of their own."


def _named(found: Found, pair: Related) -> str:
    return " and ".join(found.models[n].path for n in (pair.first, pair.second))


def _range(found: Found) -> str:
    """Say how far the checkpoints are apart."""
    far = [pair.apart.relative for pair in found.pairs if pair.apart is not None]
    if not far:
        return "an unknown part"
    low, high = f"{min(far):.2g}", f"{max(far):.2g}"
    return low if low == high else f"{low} to {high}"


def _apart(found: Found, target: Path) -> Iterator[str]:
    """Write what is merged after matching."""
    yield "models:"
    for model in found.models:
        yield from _source(model, target)
    statistics = any(model.has_statistics for model in found.models)
    told = _UPDATE_NEEDED if statistics else _UPDATE
    text = _MATCHED.format(module=_MODULE, adapter=_adapter(found), update=told)
    yield from text.splitlines()


def _finetuned(found: Found, target: Path) -> Iterator[str]:
    """Write what is merged leaf by leaf."""
    if found.base is None:
        yield "# base: PATH  # what they were trained from: most methods need it"
    else:
        yield "# Nearer to the others than they are to each other: their start."
        yield from _base(found.models[found.base], target)
    yield "models:"
    for number, model in enumerate(found.models):
        if number != found.base:
            yield from _source(model, target)
    yield from (_MEAN if found.base is None else _WITH_BASE).splitlines()


def _base(model: Looked, target: Path) -> Iterator[str]:
    lines = list(_source(model, target))
    yield f"base: {lines[0].removeprefix('  - path: ')}" if len(lines) == 1 else "base:"
    if len(lines) > 1:
        yield from (line.replace("  - ", "  ").replace("    ", "  ") for line in lines)


def _source(model: Looked, target: Path) -> Iterator[str]:
    yield f"  - path: {_scalar(_relative(model.path, target))}"
    if isinstance(model.subtree, str):
        yield f"    subtree: {_scalar(model.subtree)}"
    elif model.subtree:
        yield f"    subtree: [{', '.join(map(_scalar, model.subtree))}]"
    if model.has_random:
        yield f'    rename: {{"{RANDOM}": null}}  # without random states'


def _separate(found: Found) -> Iterator[str]:
    """Ask that leaves that differ stay with their models."""
    if not found.shared or not (found.missing or found.reshaped):
        return
    patterns = dict.fromkeys(map(_pattern, [*found.missing, *found.reshaped]))
    yield ""
    yield "# Each model keeps these; the result is one network for each, on one trunk."
    yield f"separate: [{', '.join(map(_scalar, patterns))}]"


def _pattern(path: str) -> str:
    folder = path.rpartition("/")[0]
    return f"{folder}/*" if folder else path


def _adapter(found: Found) -> str:
    """Guess the library by the names of leaves."""
    names = list(found.models[0].variables)
    if any("/~/" in name for name in names):
        return "haiku"
    return "linen" if any(name.startswith("params/") for name in names) else "nnx"


def _relative(path: str, target: Path) -> str:
    """Return a path as a recipe names it: relative to its folder, unless absolute."""
    if is_url(path) or os.path.isabs(path) or path.startswith("~"):
        return path
    return os.path.relpath(path, target.parent)


def _scalar(value: Any) -> str:
    """Write a text as YAML reads it back, on one line."""
    text = yaml.safe_dump(value, width=2**20, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _next(found: Found, target: Path) -> Iterator[str]:
    yield f"Wrote {target}"
    if not found.is_finetuned:
        yield f"Still missing: {_MODULE}.py beside it, with `make` and `batches`."
    yield f"Next: jmudsc plan {target}"
