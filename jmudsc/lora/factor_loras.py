"""Factor LoRAs: several adapters of one base become one, of a rank that is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc.lora.leaf_changes import changed, LowRank, Whole
from jmudsc.lora.lora import Lora, Update
from jmudsc.lora.merge_loras import Asked, first_of, FULL, joined, Joint
from jmudsc.lora.placement import Naming
from jmudsc.lora.spaces import svd_of_product

_WHERE = "factor_loras"


@dataclass(frozen=True, eq=False)
class Factored:
    """A merged adapter.

    Attributes:
        adapter: it, with scales of 1; leaves that are no sum of updates are whole.
        lost: target -> which share of the energy of the merged change, the sum of the
            squares of its entries, its rank could not hold.
        total: that share of all targets together.
        recipe: what decided it, plain JSON values.
    """

    adapter: Lora
    lost: Mapping[str, float]
    total: float
    recipe: Mapping[str, Any]


def factor_loras(
    adapters: Sequence[Lora],
    base: PyTree,
    method: str | Mapping[str, str] = "task_arithmetic",
    *,
    rank: int,
    space: str = FULL,
    rename: Mapping[str, str] | None = None,
    axes: Mapping[str, str] | None = None,
    key: Any = None,
    weight: Any = 1.0,
    lambda_: Any = None,
    **options: Any,
) -> Factored:
    """Merge LoRA adapters of one base to one adapter.

    They are merged as `merge_loras` does it, and the change of every matrix is then
    factored anew, to its largest singular directions. A rank as large as the sum of all
    ranks loses nothing of a linear method, nor of any in the spaces `knots` and `core`,
    in which large matrices are factored at once; DoRA and elementwise methods in full
    space lose what is told.

    Args:
        adapters: as for `merge_loras`, all from PEFT or all from trees.
        base: as for `merge_loras`.
        method: as for `merge_loras`.
        rank: of every update, or as large as its matrix allows.
        space: as for `merge_loras`.
        rename: as for `merge_loras`.
        axes: as for `merge_loras`.
        key: as for `merge_loras`.
        weight: as for `merge_loras`.
        lambda_: as for `merge_loras`.
        **options: as for `merge_loras`.

    Returns:
        The adapter, for `save_lora` or `fold_lora`, and what its rank loses.
        Biases and leaves that an adapter replaces are in it whole.

    Raises:
        ValueError: as for `merge_loras`; if the rank is no number that can be, or
            adapters are from PEFT and from trees.

    Example:
        >>> import numpy as np
        >>> from jmudsc.lora.flax_pairs import lora_from_tree
        >>> pair = {"mlp": {"lora_a": np.eye(4, 2), "lora_b": np.eye(2, 3)}}
        >>> base = {"mlp": {"kernel": np.ones((4, 3))}}
        >>> factor_loras([lora_from_tree(pair)], base, rank=1).lost
        {'mlp': 0.5}
    """
    _check(rank, adapters)
    given = {"key": key, "weight": weight, "lambda_": lambda_, **options}
    asked = Asked(_WHERE, adapters, space, Naming(rename or {}, axes or {}))
    joint = joined(asked, base, method, given)
    updates: dict[str, Update] = {}
    energies: dict[str, tuple[float, float]] = {}
    whole: dict[str, Any] = {}
    for path, changes in joint.changes.items():
        if all(c is None or not (c.wholes or c.offsets) for c in changes):
            for name, update, energy in _factored(joint, path, rank):
                updates[name], energies[name] = update, energy
        else:
            whole |= _wholes(joint, path, adapters[0].is_torch)
    turned = any(adapter.fan_in_fan_out for adapter in adapters)
    merged = Lora("merged adapter", updates, whole, adapters[0].is_torch, turned)
    lost = {name: _share(*energy) for name, energy in energies.items()}
    total = _share(
        *(sum(each) for each in zip((0.0, 0.0), *energies.values(), strict=True))
    )
    return Factored(merged, lost, total, {**joint.recipe, "rank": rank})


def _check(rank: int, adapters: Sequence[Lora]) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer) or rank < 1:
        raise ValueError(
            f"{_WHERE}: rank: expected a whole number > 0, got {rank!r}. Pass that of "
            "the adapters, or the sum of theirs to lose nothing."
        )
    if len({adapter.is_torch for adapter in adapters}) > 1:
        raise ValueError(
            f"{_WHERE}: expected adapters that are all from PEFT or all from trees, "
            "got both, whose names differ. Merge them with merge_loras."
        )


def _factored(
    joint: Joint, path: str, rank: int
) -> list[tuple[str, Update, tuple[float, float]]]:
    """Return the updates of a leaf, by target, with the energy lost and that of all."""
    first = first_of(joint.changes[path])
    factors = joint.factors(path)
    found = []
    for low in _lows(joint, path):
        shape = first.shape if low.layer is None else first.shape[1:]
        count, into, out = low.layout.sizes(shape)
        start = (low.layer or 0) * count
        kept = min(rank, into, out)
        a, b = np.zeros((count, into, kept)), np.zeros((count, kept, out))
        tail = energy = 0.0
        for number in range(count):
            if start + number in factors:
                u, s, vt = svd_of_product(*factors[start + number])
                n = min(kept, len(s))
                a[number, :, :n] = u[:, :n] * np.sqrt(s[:n])
                b[number, :n] = np.sqrt(s[:n])[:, None] * vt[:n]
                tail, energy = tail + (s[n:] ** 2).sum(), energy + (s**2).sum()
        update = _update(low, shape, a.astype(np.float32), b.astype(np.float32))
        found.append((low.target, update, (float(tail), float(energy))))
    return found


def _lows(joint: Joint, path: str) -> list[LowRank]:
    """Return an update of every layer of a leaf that any adapter changes."""
    found: dict[int | None, LowRank] = {}
    for change in joint.changes[path]:
        for low in change.lows if change else ():
            found.setdefault(low.layer, low)
    return list(found.values())


def _update(
    low: LowRank, shape: tuple[int, ...], a: np.ndarray, b: np.ndarray
) -> Update:
    """Return factors as the update that they replace has them."""
    kind, rank = low.update.kind, a.shape[-1]
    if kind == "leaf":
        apart = tuple(
            n for n, x in zip(shape, low.layout.letters, strict=True) if x in "lb"
        )
        return Update(a.reshape(*apart, *a.shape[1:]), b.reshape(*apart, *b.shape[1:]))
    first, second = a[0], b[0]
    if kind == "convolution":
        inner = [n for n, x in zip(shape, low.layout.letters, strict=True) if x == "i"]
        first = first.reshape(*inner, rank)
        first = np.moveaxis(first, -2, 0) if low.window_first else first
    return Update(first, second, kind=kind)


def _wholes(joint: Joint, path: str, is_torch: bool) -> dict[str, np.ndarray]:
    """Return a leaf as it is after the merge, by its name in an adapter."""
    base = np.asarray(joint.leaves[path])
    wide = base.astype(joint.merged[path].dtype)
    leaf = changed(wide, joint.step(path)).astype(base.dtype)
    found = {}
    for change in joint.changes[path]:
        for whole in change.wholes if change else ():
            found[whole.name] = _turned_back(_part(leaf, whole.layer), whole)
        for offset in change.offsets if change else ():
            name = f"{offset.target}{'.' if is_torch else '/'}bias"
            found.setdefault(name, _part(leaf, offset.layer))
    return found


def _turned_back(leaf: np.ndarray, whole: Whole) -> np.ndarray:
    """Bring (*window, in, out) to (out, in, *window) where the adapter has it so."""
    if not whole.is_turned:
        return leaf
    return leaf.transpose(leaf.ndim - 1, leaf.ndim - 2, *range(leaf.ndim - 2))


def _part(leaf: np.ndarray, layer: int | None) -> np.ndarray:
    return leaf if layer is None else leaf[layer]


def _share(tail: float, energy: float) -> float:
    return tail / energy if energy else 0.0
