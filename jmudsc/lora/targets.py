"""Targets: which leaf of the base each name of an adapter is of."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from jmudsc import paths
from jmudsc.checkpoints.renaming import check_stars
from jmudsc.lora.lora import Lora

# What the leaf of a layer may be called, by what the adapter calls it.
_MATRICES = ("weight", "kernel", "embedding", "w")
_WORDS = {
    "weight": (*_MATRICES, "scale"),
    "running_mean": ("running_mean", "mean"),
    "running_var": ("running_var", "var"),
}
_INDEXED = re.compile(r"(.*)\[(\d+)\]")
_SEPARATOR = re.compile(r"[/.]|_(?=\d+(?:[/.]|$))")

Role = Literal["updates", "biases", "replaced"]
# The words that a leaf may be called, below a layer; and the paths there are, by the
# names that they have without what differs between libraries.
_Asked = tuple[str, tuple[str, ...]]
_Known = Mapping[str, list[str]]


@dataclass(frozen=True)
class Target:
    """A leaf of the base, or one layer of a leaf that holds several.

    Attributes:
        path: the leaf.
        layer: which entry of its first axis; None for all of it.
    """

    path: str
    layer: int | None = None


@dataclass(frozen=True)
class Targets:
    """Where an adapter goes.

    Attributes:
        updates: target of an update -> the leaf that it changes.
        biases: target of an update with a bias -> the leaf of the bias.
        replaced: name of a replaced leaf -> the leaf.
    """

    updates: Mapping[str, Target]
    biases: Mapping[str, Target]
    replaced: Mapping[str, Target]


def targets_of(
    where: str,
    adapter: Lora,
    leaves: Iterable[str],
    rename: Mapping[str, str] | None = None,
) -> Targets:
    """Find the leaf of the base for every name of an adapter.

    A name is that of a leaf, or of a layer with a leaf called weight, kernel, embedding
    or w. `.`, `/`, and `_` before a number are the same, and so are names of which one
    has more in front.

    Args:
        where: the caller, named in errors.
        adapter: the adapter.
        leaves: the paths of the base.
        rename: pattern of names of the adapter -> the path in the base, of which the
            first that matches counts; `*` is the same text in both. A path that ends in
            `[*]` is one layer of a leaf that holds several.

    Raises:
        ValueError: if a pattern and its path differ in `*`, or listing the patterns
            that match nothing, the names that have no leaf or several, or the leaves
            that have several names.
    """
    rename, known = rename or {}, _known(leaves)
    _check_rename(where, rename, [*adapter.updates, *adapter.replaced])
    asked = _asked(adapter, rename)
    found = {ask: _hits(*words, known) for ask, words in asked.items()}
    _check_found(where, adapter, found, known)
    targets = {
        ask: Target(hits[0], _layer(asked[ask][0])) for ask, hits in found.items()
    }
    _check_once(where, adapter, targets)
    of = lambda role: {name: x for (own, name), x in targets.items() if own == role}
    return Targets(of("updates"), of("biases"), of("replaced"))


def _asked(adapter: Lora, rename: Mapping[str, str]) -> dict[tuple[Role, str], _Asked]:
    """Return what is looked for, by what it is and its name in the adapter."""
    asked: dict[tuple[Role, str], _Asked] = {}
    for name, update in adapter.updates.items():
        asked["updates", name] = _renamed(name, rename), _MATRICES
        if update.bias is not None:
            asked["biases", name] = _layer_of(_renamed(name, rename)), ("bias",)
    for name in adapter.replaced:
        layer, _, word = name.rpartition("." if adapter.is_torch else "/")
        moved, whole = _renamed(layer, rename), _renamed(name, rename)
        below = whole if moved == layer and whole != name else moved
        asked["replaced", name] = below, _WORDS.get(word, (word,))
    return asked


def _known(leaves: Iterable[str]) -> _Known:
    known: dict[str, list[str]] = {}
    for path in leaves:
        known.setdefault(_plain(path), []).append(path)
    return known


def _hits(name: str, words: tuple[str, ...], known: _Known) -> list[str]:
    """Return the leaves that may be meant."""
    if match := _INDEXED.fullmatch(name):
        name = match[1]
    plain = _plain(name)
    below = [f"{plain}.{word}" if plain else word for word in words]
    is_leaf = plain.rpartition(".")[2] in words or words == _MATRICES
    exact = [path for each in below for path in known.get(each, [])]
    exact += known.get(plain, []) if is_leaf else []
    if exact:
        return exact
    return [
        path
        for mine, theirs in known.items()
        for path in theirs
        if any(mine.endswith(f".{x}") or x.endswith(f".{mine}") for x in below)
    ]


def _plain(path: str) -> str:
    path = path.removesuffix("/value")  # of an `nnx.State`
    return _SEPARATOR.sub(".", path).replace(".base_module.", ".")


def _layer(name: str) -> int | None:
    match = _INDEXED.fullmatch(name)
    return int(match[2]) if match else None


def _layer_of(name: str) -> str:
    """Return the layer of a leaf, or the layer itself, with its place in a stack."""
    match = _INDEXED.fullmatch(name)
    path, place = (match[1], f"[{match[2]}]") if match else (name, "")
    parts = re.split(r"([/.])", path)
    return "".join(parts[:-2]) + place if parts[-1] in _MATRICES else name


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    for pattern, new in rename.items():
        if found := paths.starred(pattern, {name: name}):
            return paths.filled(new, found[name])
    return name


def _check_rename(where: str, rename: Mapping[str, str], names: list[str]) -> None:
    check_stars(where, rename)
    layers = [name.rpartition(".")[0] for name in names]
    known = {name: name for name in (*names, *layers)}
    unmatched = [
        f'"{old}"{paths.did_you_mean(old, names)}'
        for old in rename
        if not paths.starred(old, known)
    ]
    if unmatched:
        raise ValueError(
            f"{where}: expected patterns that match a name of the adapter, got "
            f"{len(unmatched)} of {len(rename)} in rename that match none. Correct "
            f"them:\n{paths.listed(unmatched)}"
        )


def _check_found(
    where: str,
    adapter: Lora,
    found: Mapping[tuple[Role, str], list[str]],
    known: _Known,
) -> None:
    """Check that everything has one leaf."""
    leaves = [path for hits in known.values() for path in hits]
    missing = [
        _said(ask) + ("" if ask[0] == "biases" else paths.did_you_mean(ask[1], leaves))
        for ask, hits in found.items()
        if not hits
    ]
    if missing:
        raise ValueError(
            f"{where}: expected a leaf of the base for everything in {adapter.where}, "
            f"got none for {len(missing)} of {len(found)}. Pass the base that it was "
            "trained on, or rename=, name in the adapter -> path in the base:\n"
            f"{paths.listed(missing)}"
        )
    several = [
        f"{_said(ask)}: {paths.listed_in_line(hits)}"
        for ask, hits in found.items()
        if len(hits) > 1
    ]
    if several:
        raise ValueError(
            f"{where}: expected one leaf of the base for everything in "
            f"{adapter.where}, got several for {len(several)} of {len(found)}. Say by "
            f"rename= which are meant:\n{paths.listed(several)}"
        )


def _check_once(
    where: str, adapter: Lora, targets: Mapping[tuple[Role, str], Target]
) -> None:
    """Check that no leaf is updated, or replaced, twice."""
    twice = [
        f"{target.path}: {' and '.join(names)}"
        for role in ("updates", "biases", "replaced")
        for target, names in paths.shared(
            {name: x for (own, name), x in targets.items() if own == role}
        ).items()
    ]
    if twice:
        raise ValueError(
            f"{where}: expected one name in {adapter.where} for each leaf of the base, "
            f"got several for {len(twice)}. Correct rename:\n{paths.listed(twice)}"
        )


def _said(ask: tuple[Role, str]) -> str:
    role, name = ask
    return f"the bias of {name}" if role == "biases" else name
