"""Placement: the axes of the base that the factors of an adapter run over."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from jmudsc import paths
from jmudsc.finetunes.leaf_layout import Layout, letters_problems
from jmudsc.finetunes.settings import matched
from jmudsc.lora.leaf_changes import Change, LowRank, Offset, Whole
from jmudsc.lora.lora import Lora, Update
from jmudsc.lora.targets import Target, targets_of


@dataclass(frozen=True)
class Naming:
    """What the user says of the names of an adapter.

    Attributes:
        rename: pattern of names of the adapter -> path in the base.
        axes: pattern of paths of the base -> a letter for each axis.
    """

    rename: Mapping[str, str]
    axes: Mapping[str, str]


def changes_of(
    where: str,
    adapter: Lora,
    shapes: Mapping[str, tuple[int, ...]],
    naming: Naming,
) -> dict[str, Change]:
    """Return what an adapter does to each leaf that it changes.

    Args:
        where: the caller, named in errors.
        adapter: the adapter.
        shapes: path -> shape, of the base.
        naming: what the user says of names.

    Raises:
        ValueError: if a name has no leaf, or listing everything that does not fit the
            leaf that it is of.
    """
    if wrong := letters_problems(naming.axes, shapes):
        raise ValueError(
            f"{where}: expected letters of the axes of leaves, got "
            f"{paths.plural(len(wrong), 'problem')}. Correct axes:\n"
            f"{paths.listed(wrong)}"
        )
    targets = targets_of(where, adapter, shapes, naming.rename)
    found: dict[str, Change] = {}
    problems = _doubtful(adapter, targets.updates, shapes, naming.axes)

    def add(path: str, kind: str, new: Whole | LowRank | Offset | str) -> None:
        if isinstance(new, str):
            problems.append(new)
        else:
            old = found.get(path, Change(shapes[path]))
            found[path] = replace(old, **{kind: (*getattr(old, kind), new)})

    for name, target in targets.replaced.items():
        add(target.path, "wholes", _whole(adapter, name, target, shapes))
    for name, target in targets.updates.items():
        add(target.path, "lows", _placed(adapter, name, target, shapes, naming.axes))
    for name, target in targets.biases.items():
        add(target.path, "offsets", _offset(adapter, name, target, shapes))
    if problems:
        raise ValueError(
            f"{where}: expected {adapter.where} to fit the leaves of the base, got "
            f"{paths.plural(len(problems), 'difference')}. Pass the base that it was "
            "trained on; axes= says of a leaf which of its axes go in and out:\n"
            f"{paths.listed(problems)}"
        )
    return found


def _whole(
    adapter: Lora, name: str, target: Target, shapes: Mapping[str, tuple[int, ...]]
) -> Whole | str:
    """Return what takes the place of a leaf, or what is wrong."""
    leaf, shape = adapter.replaced[name], _part(shapes, target)
    own = tuple(np.shape(leaf))
    is_weight = adapter.is_torch and name.endswith("weight")
    turned = is_weight and _word(target.path) == "kernel"
    if shape != ((*own[2:], *own[1::-1]) if turned else own):
        return f"{target.path} of shape {_said(shape)}, in {name} {list(own)}"
    return Whole(leaf, name, target.layer, turned)


def _offset(
    adapter: Lora, name: str, target: Target, shapes: Mapping[str, tuple[int, ...]]
) -> Offset | str:
    """Return what is added to a bias, or what is wrong."""
    update = adapter.updates[name]
    assert update.bias is not None
    shape, own = _part(shapes, target), tuple(np.shape(update.bias))
    if shape != own:
        return f"{target.path} of shape {_said(shape)}, in {name} a bias {list(own)}"
    return Offset(update.bias, update.scale, name, target.layer)


def _placed(
    adapter: Lora,
    name: str,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]],
    axes: Mapping[str, str],
) -> LowRank | str:
    """Return an update with the layout of its leaf, or what is wrong."""
    update, shape = adapter.updates[name], _part(shapes, target)
    if shape is None:
        whole = list(shapes[target.path])
        return f"{target.path} of shape {whole} has no layer {target.layer}"
    letters = _letters(update, target, shape, adapter.fan_in_fan_out, axes)
    first = letters is not None and not letters.startswith("o")
    window_first = first and update.kind == "convolution"
    if letters is not None and _fits(update, shape, letters, window_first):
        return LowRank(update, name, target.layer, Layout(letters), window_first)
    a, b = list(np.shape(update.a)), list(np.shape(update.b))
    return f"{target.path} of shape {list(shape)}, in {name} A {a} and B {b}"


def _fits(
    update: Update, shape: tuple[int, ...], letters: str, window_first: bool
) -> bool:
    """Whether factors have the sizes of a leaf whose axes have these letters."""
    layout = Layout(letters)
    if len(letters) != len(shape) or not layout.is_matrix:
        return False
    matrices, into, out = layout.sizes(shape)
    a, rank = np.shape(update.a), update.rank
    if math.prod(a) != matrices * into * rank:
        return False
    if math.prod(np.shape(update.b)) != matrices * rank * out:
        return False
    if update.kind != "convolution":
        return True
    inner = (*a[1:-1], a[0]) if window_first else a[:-1]
    return inner == (shape[:-1] if window_first else shape[1:])


def _letters(
    update: Update,
    target: Target,
    shape: tuple[int, ...],
    fan_in_fan_out: bool,
    axes: Mapping[str, str],
) -> str | None:
    """Return the letters of the axes of what an update changes; None if unclear."""
    pattern = matched(target.path, axes)
    if pattern is not None:
        return axes[pattern][0 if target.layer is None else 1 :]
    is_torch = _word(target.path) == "weight"
    if update.kind == "embedding":
        return "io"
    if update.kind == "convolution":
        rest = "i" * (len(shape) - 2)
        return f"oi{rest}" if is_torch else f"{rest}io"
    if update.kind == "linear" and is_torch:
        into, out = np.shape(update.a)[0], np.shape(update.b)[-1]
        turned = shape == (into, out) and (into != out or fan_in_fan_out)
        return "io" if turned else "oi"
    if len(shape) == 2:
        return "oi" if is_torch else "io"
    return _by_sizes(update, shape, _word(target.path) == "kernel")


def _by_sizes(update: Update, shape: tuple[int, ...], in_order: bool) -> str | None:
    """Return the only letters by which factors have the sizes of a leaf.

    Args:
        update: the factors.
        shape: of the leaf.
        in_order: whether its axes are stacked, then in, then out.
    """
    fitting = [
        letters
        for letters in map("".join, itertools.product("bio", repeat=len(shape)))
        if not (in_order and list(letters) != sorted(letters))
        and _has_sizes(update, shape, letters)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _has_sizes(update: Update, shape: tuple[int, ...], letters: str) -> bool:
    """Whether factors have the axes of a leaf, or those that go in or out as one."""
    pairs = list(zip(shape, letters, strict=True))
    size = {x: tuple(n for n, y in pairs if x == y) for x in "bio"}
    a, b, rank = np.shape(update.a), np.shape(update.b), update.rank
    if len(b) == 4 and b[:3] == (1, 1, rank):  # a convolution of a window 1 x 1
        b = b[2:]
    each, into, out = size["b"], size["i"], size["o"]
    reads = {(*each, *into, rank), (*each, math.prod(into), rank)}
    writes = {(*each, rank, *out), (*each, rank, math.prod(out))}
    return bool(into) and bool(out) and a in reads and b in writes


def _doubtful(
    adapter: Lora,
    targets: Mapping[str, Target],
    shapes: Mapping[str, tuple[int, ...]],
    axes: Mapping[str, str],
) -> list[str]:
    """Return square matrices of torch for which nothing tells what goes in.

    Where `fan_in_fan_out` is not so of one that is not square, it says nothing.
    """
    square, is_wrong = [], False
    for name, target in targets.items():
        update, shape = adapter.updates[name], _part(shapes, target)
        is_plain = update.kind == "linear" and _word(target.path) == "weight"
        if is_plain and not matched(target.path, axes):
            into, out = np.shape(update.a)[0], np.shape(update.b)[-1]
            square += [target.path] if into == out else []
            stored = (into, out) if adapter.fan_in_fan_out else (out, into)
            is_wrong |= into != out and shape == stored[::-1]
    if not is_wrong:
        return []
    return [
        f"{path} is square, and fan_in_fan_out is wrong of others: give its axes"
        for path in square
    ]


def _word(path: str) -> str:
    return path.removesuffix("/value").split("/")[-1].split(".")[-1]


def _part(
    shapes: Mapping[str, tuple[int, ...]], target: Target
) -> tuple[int, ...] | None:
    """Return the shape of what a target is; None if there is no such layer."""
    shape = tuple(shapes[target.path])
    if target.layer is None:
        return shape
    return shape[1:] if shape and target.layer < shape[0] else None


def _said(shape: tuple[int, ...] | None) -> str:
    return "too few layers" if shape is None else f"{list(shape)}"
