"""Merge LoRAs: several of one base become one change of it."""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.ending import fixed_spec
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.finetunes.methods import FINETUNE_METHODS
from jmudsc.finetunes.settings import matched
from jmudsc.finetunes.tree_checks import is_float
from jmudsc.lazy import LazyArray, present
from jmudsc.lora.fold_lora import shapes_of, wide_type, with_changes
from jmudsc.lora.leaf_changes import (
    Change,
    changed,
    factors_of,
    layout_of,
    numbers_of,
    product_at,
    step_of,
)
from jmudsc.lora.lora import Lora
from jmudsc.lora.placement import changes_of, Naming
from jmudsc.lora.spaces import Coordinates, padded, Space, SPACES
from jmudsc.merging.result import MergeResult
from jmudsc.sharding import to_host

FULL = "full"
# Options of merge_finetunes that look at whole models.
_OF_MODELS = (
    "apply_fn batches owners score lambdas separate update_fn refit refit_ridge repair"
).split()


def merge_loras(
    adapters: Sequence[Lora],
    base: PyTree,
    method: str | Mapping[str, str] = "task_arithmetic",
    *,
    space: str = FULL,
    rename: Mapping[str, str] | None = None,
    axes: Mapping[str, str] | None = None,
    key: Any = None,
    weight: Any = 1.0,
    lambda_: Any = None,
    **options: Any,
) -> MergeResult:
    """Merge LoRA adapters of one base, and fold what they become into it.

    What each adapter adds to a leaf, `D_i`, is merged as `merge_finetunes` merges the
    deltas of fine-tunes, by any of its methods that needs no data; methods without a
    base are given the deltas too. For those that need data, or a score, fold every
    adapter and call `merge_finetunes`. The factors A and B are never merged one by one:
    the product of sums is not the sum of products.

    A leaf that an adapter does not change has a delta of 0. If the base is on disk,
    every leaf is merged when it is read or saved.

    Args:
        adapters: from `load_lora` or `lora_from_tree`.
        base: the variables that all were trained on.
        method: as for `merge_finetunes`.
        space: in which numbers low-rank updates are merged: `full` in the entries of
            the matrices; `knots` on the right singular vectors of all together (KnOTS);
            `core` on bases of what all read and write (Core Space), small matrices
            for which spectral methods take a moment. Linear methods give the same in
            each. Leaves that change otherwise (DoRA, biases, replaced ones) are merged
            in full.
        rename: as for `fold_lora`.
        axes: as for `fold_lora`.
        key: a PRNG key, for methods that draw numbers.
        weight: how much each adapter counts.
        lambda_: the scale of what is added to the base; `"auto"` for one over the
            number of adapters, None for that of the method.
        **options: those of the method, and `exclude`, `vectors`, `calibrate` and
            `calibrate_alpha` of `merge_finetunes`.

    Returns:
        The variables, of the structure and dtypes of the base; `save` writes them.

    Raises:
        ValueError: if adapters do not fit the base, or the method or an option is not
            one that can be.

    Example:
        >>> import numpy as np
        >>> from jmudsc.lora.flax_pairs import lora_from_tree
        >>> ones = {"mlp": {"lora_a": np.ones((2, 1)), "lora_b": np.ones((1, 2))}}
        >>> two = [lora_from_tree(ones), lora_from_tree(ones)]
        >>> result = merge_loras(two, {"mlp": {"kernel": np.eye(2)}}, "linear")
        >>> result.variables["mlp"]["kernel"].tolist()
        [[2.0, 1.0], [1.0, 2.0]]
    """
    given = {"key": key, "weight": weight, "lambda_": lambda_, **options}
    asked = Asked("merge_loras", adapters, space, Naming(rename or {}, axes or {}))
    joint = joined(asked, base, method, given)
    fold = lambda path, leaf: changed(leaf, joint.step(path))
    variables = with_changes(base, joint.changes, fold)
    return MergeResult(
        variables, fixed_spec(base), {}, recipe=joint.recipe, changes=joint.told
    )


@dataclass(frozen=True, eq=False)
class Asked:
    """What is to be merged.

    Attributes:
        where: the caller, named in errors.
        adapters: what is merged.
        space: the name of the space.
        naming: what the user says of names.
    """

    where: str
    adapters: Sequence[Lora]
    space: str
    naming: Naming


@dataclass(frozen=True, eq=False)
class Joint:
    """The change that several adapters become.

    Attributes:
        leaves: path -> leaf of the base.
        changes: path -> what each adapter does to a leaf; None for nothing.
        merged: path -> what the deltas, or their coordinates, are merged to.
        spaces: path -> the space of the coordinates; leaves that are merged in full
            are left out.
        coordinates: of a leaf, by path: of each of its matrices that has an update.
        recipe: what decided it.
        told: path -> what to tell of a leaf.
    """

    leaves: Mapping[str, Any]
    changes: Mapping[str, tuple[Change | None, ...]]
    merged: Mapping[str, LazyArray]
    spaces: Mapping[str, Space]
    coordinates: Any
    recipe: Mapping[str, Any]
    told: Mapping[str, str]

    def step(self, path: str) -> np.ndarray:
        """Return what is added to a leaf of the base, in wide numbers."""
        if path not in self.spaces:
            return np.asarray(self.merged[path].read())
        first, wide = first_of(self.changes[path]), wide_type(self.leaves[path].dtype)
        layout, factors = layout_of(first), self.factors(path)
        matrices, into, out = layout.sizes(first.shape)
        inner = max(a.shape[1] for a, _ in factors.values())
        reads = np.zeros((matrices, into, inner), wide)
        writes = np.zeros((matrices, inner, out), wide)
        for number, (a, b) in factors.items():
            assert b is not None
            reads[number, :, : a.shape[1]], writes[number, : len(b)] = a, b
        return product_at(layout, first.shape, reads, writes)

    def factors(self, path: str) -> dict[int, tuple[np.ndarray, np.ndarray | None]]:
        """Return what is added to each matrix of a leaf, in float64.

        Args:
            path: a leaf of low-rank updates.

        Returns:
            Number of the matrix -> two factors, or itself and None.
        """
        merged = np.asarray(self.merged[path].read(), np.float64)
        if path not in self.spaces:
            first = first_of(self.changes[path])
            matrices = layout_of(first).matrices(merged)
            there = [change for change in self.changes[path] if change is not None]
            numbers = {number for change in there for number in numbers_of(change)}
            return {number: (matrices[number], None) for number in sorted(numbers)}
        found = {}
        for number, own in self.coordinates(path).items():
            rows, columns = own.models[0].shape
            found[number] = own.lifted(merged[number, :rows, :columns])
        return found


def joined(
    asked: Asked,
    base: PyTree,
    method: str | Mapping[str, str],
    given: Mapping[str, Any],
) -> Joint:
    """Merge adapters to one change of their base.

    Args:
        asked: what is to be merged, and where.
        base: the variables of the base.
        method: as for `merge_finetunes`.
        given: the keywords of `merge_finetunes`.

    Returns:
        The change, of which nothing is computed yet.
    """
    _check(asked, method, given)
    leaves = paths.flatten(base)
    changes, told = _together(asked, leaves)
    source = {"adapters": [a.where for a in asked.adapters], "space": asked.space}
    if not changes:
        return Joint(leaves, {}, {}, {}, None, {"method": method, **source}, told)
    space = SPACES.get(asked.space)
    spaces = {path: space for path, each in changes.items() if space and _is_low(each)}
    coordinates = functools.lru_cache(maxsize=1)(
        lambda path: _coordinates(spaces[path], changes[path])
    )
    shapes = {
        path: _shape(spaces[path], each) if path in spaces else first_of(each).shape
        for path, each in changes.items()
    }

    def delta(path: str, model: int) -> np.ndarray:
        if path not in spaces:
            change = changes[path][model]
            wide = _wide(leaves[path])
            zeros = np.zeros(shapes[path], wide.dtype)
            return zeros if change is None else step_of(change, wide)
        found = np.zeros(shapes[path])
        for number, own in coordinates(path).items():
            found[number] = padded(own.models[model], shapes[path][1:])
        return found

    deltas = [
        _lazy(shapes, spaces, leaves, lambda path, model=model: delta(path, model))
        for model in range(len(asked.adapters))
    ]
    zeros = _lazy(shapes, spaces, leaves, lambda path: np.zeros(shapes[path]))
    letters = _letters(asked.naming.axes, changes, spaces)
    result = merge_finetunes(deltas, zeros, method, axes=letters, check=False, **given)
    recipe = {name: x for name, x in result.recipe.items() if name != "axes"}
    recipe |= source
    many = paths.plural(len(asked.adapters), "adapter")
    how = {path: asked.space if path in spaces else FULL for path in changes}
    told |= {path: f"{many} merged, space {how[path]}" for path in changes}
    told |= result.changes
    return Joint(leaves, changes, result.variables, spaces, coordinates, recipe, told)


def first_of(changes: Sequence[Change | None]) -> Change:
    """Return the first change of a leaf."""
    return next(change for change in changes if change is not None)


def _check(
    asked: Asked, method: str | Mapping[str, str], given: Mapping[str, Any]
) -> None:
    """Check that deltas alone are enough for what is asked for."""
    if asked.space not in (FULL, *SPACES):
        known = ", ".join((FULL, *SPACES))
        raise ValueError(
            f"{asked.where}: space: expected one of {known}, got {asked.space!r}. The "
            "factors of adapters are not merged one by one: (A_1 + A_2) (B_1 + B_2) "
            "has products A_1 B_2 that no adapter has."
        )
    if not asked.adapters:
        raise ValueError(
            f"{asked.where}: expected at least one adapter, got none. Pass a list of "
            "what load_lora returned."
        )
    names = method.values() if isinstance(method, Mapping) else [method]
    rows = [FINETUNE_METHODS.get(name) for name in names if isinstance(name, str)]
    wrong = [f'the method "{r.name}"' for r in rows if r and (r.needs_data or r.runs)]
    wrong += [name for name in _OF_MODELS if name in given]
    wrong += ['lambda_="search"'] if given.get("lambda_") == "search" else []
    if wrong:
        raise ValueError(
            f"{asked.where}: expected what needs deltas alone, got {', '.join(wrong)}. "
            "Fold every adapter with fold_lora, and call merge_finetunes with the "
            "models and the base."
        )


def _together(
    asked: Asked, leaves: Mapping[str, Any]
) -> tuple[dict[str, tuple[Change | None, ...]], dict[str, str]]:
    """Return what each adapter does to each leaf, and what to tell of leaves."""
    shapes = shapes_of(leaves)
    each = [changes_of(asked.where, a, shapes, asked.naming) for a in asked.adapters]
    touched = [path for path in leaves if any(path in own for own in each)]
    told = {
        path: "taken from the base: it holds no floating-point numbers"
        for path in touched
        if not is_float(leaves[path])
    }
    changes = {
        path: tuple(_without_same(own.get(path), leaves[path]) for own in each)
        for path in touched
        if path not in told
    }
    return {x: own for x, own in changes.items() if any(own)}, told


def _without_same(change: Change | None, leaf: Any) -> Change | None:
    """Return a change without leaves saved whole that are those of the base.

    PEFT saves tables of embeddings beside the updates of them.
    """
    if change is None or not change.wholes:
        return change
    base = np.asarray(to_host(present(leaf)))
    wide = base.astype(np.float64)
    wholes = tuple(
        whole
        for whole in change.wholes
        if step_of(Change(change.shape, (whole,)), wide).any()
    )
    left = replace(change, wholes=wholes)
    return left if wholes or left.lows or left.offsets else None


def _is_low(changes: Sequence[Change | None]) -> bool:
    """Whether a leaf has low-rank updates alone, of matrices cut alike."""
    there = [change for change in changes if change is not None]
    layouts = {layout_of(change).letters for change in there if change.lows}
    return all(change.is_low_rank for change in there) and len(layouts) == 1


def _coordinates(
    space: Space, changes: Sequence[Change | None]
) -> dict[int, Coordinates]:
    """Return the coordinates of every matrix of a leaf that has an update."""
    factors = [{} if change is None else factors_of(change) for change in changes]
    numbers = sorted({number for own in factors for number in own})
    return {n: space.coordinates([own.get(n) for own in factors]) for n in numbers}


def _shape(space: Space, changes: Sequence[Change | None]) -> tuple[int, ...]:
    """Return the shape of the coordinates of a leaf."""
    first = first_of(changes)
    matrices, into, out = layout_of(first).sizes(first.shape)
    ranks = sum(
        max(low.update.rank for low in change.lows) for change in changes if change
    )
    return matrices, *space.sizes(into, out, ranks)


def _lazy(
    shapes: Mapping[str, tuple[int, ...]],
    spaces: Mapping[str, Space],
    leaves: Mapping[str, Any],
    read: Any,
) -> dict[str, LazyArray]:
    """Return arrays that are computed when they are asked for."""
    fetch = lambda names: {name: read(name) for name in names}
    return {
        path: LazyArray(
            path,
            shape,
            np.dtype(np.float64) if path in spaces else wide_type(leaves[path].dtype),
            fetch,
        )
        for path, shape in shapes.items()
    }


def _letters(
    axes: Mapping[str, str],
    changes: Mapping[str, tuple[Change | None, ...]],
    spaces: Mapping[str, Space],
) -> dict[str, str]:
    """Return the letters of the axes of what is merged, by patterns of paths."""
    found = {}
    for path, each in changes.items():
        lows = [low for change in each if change for low in change.lows]
        letters = layout_of(first_of(each)).letters if _is_low(each) else None
        if path in spaces:
            assert letters is not None
            letters = "lio" if "l" in letters else "bio"
        elif (pattern := matched(path, axes)) is not None:
            letters = axes[pattern]
        elif any(low.update.kind == "embedding" for low in lows):
            letters = None  # a table is no matrix, whatever is merged
        if letters is not None:
            found[f"re:^{re.escape(path)}$"] = letters
    return found


def _wide(leaf: Any) -> np.ndarray:
    return np.asarray(to_host(present(leaf))).astype(wide_type(leaf.dtype))
