"""Load LoRA: the folder that PEFT writes, read with neither torch nor PEFT."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jmudsc import paths
from jmudsc.checkpoints.safetensors import open_safetensors
from jmudsc.lazy import LazyArray
from jmudsc.lora.lora import Kind, Lora, Update
from jmudsc.lora.peft_config import PeftConfig, read_config

WEIGHTS, CONFIG, PREFIX = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "base_model.model.",
)
# What the arrays of one update are called after the name of its module.
_ROLES = {
    "lora_A.weight": "a",
    "lora_B.weight": "b",
    "lora_B.bias": "bias",
    "lora_embedding_A": "table_a",
    "lora_embedding_B": "table_b",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
_ROLE = re.compile(rf"(.+)\.({'|'.join(map(re.escape, _ROLES))})")


@dataclass
class _Found:
    """The arrays of a file, by what they are."""

    parts: dict[str, dict[str, LazyArray]] = field(default_factory=dict)
    replaced: dict[str, LazyArray] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def load_lora(path: str | os.PathLike[str]) -> Lora:
    """Load a LoRA adapter as PEFT writes it.

    Read are low-rank updates of linear layers, convolutions and embeddings, with the
    scales of rsLoRA and of `rank_pattern` and `alpha_pattern`, the magnitudes of DoRA,
    biases, and what `modules_to_save` saved whole. The arrays stay on disk until they
    are used.

    Args:
        path: the folder with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The adapter, for `fold_lora` and `merge_loras`.

    Raises:
        FileNotFoundError: if there is no such folder, or a file is missing.
        ValueError: if it is an adapter of another type, or has anything that is not
            known to leave a fold as it is, all of that at once.

    Example:
        >>> load_lora("no/such/folder")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        FileNotFoundError: ...
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: expected the folder of an adapter, got none. Pass the folder "
            f"with {CONFIG} and {WEIGHTS}."
        )
    config = read_config(folder / CONFIG)
    file = folder / WEIGHTS
    if not file.is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        instead = "adapter_model.bin, a pickle" if pickled else "no such file"
        raise FileNotFoundError(
            f"{file}: expected the weights of an adapter, got {instead}. Save it with "
            "safe_serialization=True."
        )
    found = _sorted(open_safetensors(file))
    if problems := _problems(found, config):
        raise ValueError(
            f"{file}: expected the factors that its config is of, got "
            f"{paths.plural(len(problems), 'difference')}:\n"
            f"{paths.listed(problems, most=30)}\n"
            "Copy both files of one save, or fold it by the library that made it."
        )
    updates = {
        module: _update(parts, config.scale_of(module))
        for module, parts in found.parts.items()
    }
    return Lora(str(folder), updates, found.replaced, True, config.fan_in_fan_out)


def _sorted(arrays: Mapping[str, LazyArray]) -> _Found:
    """Tell arrays apart by their names."""
    found = _Found()
    for name, array in arrays.items():
        name = name.removeprefix(PREFIX)
        if match := _ROLE.fullmatch(name):
            found.parts.setdefault(match[1], {})[_ROLES[match[2]]] = array
        elif "lora_" in name:
            found.unknown.append(name)
        else:
            whole = name.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            found.replaced[whole] = array
    return found


def _problems(found: _Found, config: PeftConfig) -> list[str]:
    lines = [f"{name}: an array of a kind that is not known" for name in found.unknown]
    if not (found.parts or found.replaced or lines):
        return ["no arrays at all"]
    for module, parts in found.parts.items():
        lines += [f"{module}: {line}" for line in _part_problems(module, parts, config)]
    return lines


def _part_problems(
    module: str, parts: Mapping[str, LazyArray], config: PeftConfig
) -> list[str]:
    """Return what is wrong with the arrays of one update."""
    names = ("table_a", "table_b") if _is_table(parts) else ("a", "b")
    missing = [name for name in names if name not in parts]
    if missing:
        return [f"no {' and no '.join(n[-1].upper() for n in missing)}"]
    a, b = (parts[name].shape for name in names)
    if len(a) < 2 or len(b) < 2:
        return [f"A of shape {list(a)} and B of shape {list(b)}, not gathered"]
    if a[0] != b[1]:
        return [f"A of rank {a[0]}, B of rank {b[1]}"]
    found, rank = [], config.rank_of(module)
    if a[0] != rank:
        found.append(f"A and B of rank {a[0]}, in the config {rank}")
    if any(size != 1 for size in b[2:]):
        found.append(f"B of shape {list(b)}, with a window of its own")
    if config.dora != ("magnitude" in parts):
        found.append("no magnitude" if config.dora else "a magnitude, without use_dora")
    for name in {"magnitude", "bias"} & parts.keys():
        if parts[name].size != b[0]:
            found.append(f"{name} of {parts[name].size} entries for {b[0]} outputs")
    return found


def _is_table(parts: Mapping[str, Any]) -> bool:
    return bool({"table_a", "table_b"} & parts.keys())


def _update(parts: Mapping[str, LazyArray], scale: float) -> Update:
    """Bring the arrays of torch to (in, rank) and (rank, out)."""
    kind: Kind = "embedding" if _is_table(parts) else "linear"
    a, b = (
        parts["table_a" if kind == "embedding" else "a"],
        parts["table_b" if kind == "embedding" else "b"],
    )
    if a.ndim > 2:
        kind = "convolution"
    rank, out = a.shape[0], b.shape[0]
    last = lambda x: np.moveaxis(x, 0, -1)
    magnitude, bias = parts.get("magnitude"), parts.get("bias")
    flat = lambda x: x.reshape(-1)
    return Update(
        _seen(a, last, (*a.shape[1:], rank)),
        _seen(b, lambda x: x.reshape(out, rank).T, (rank, out)),
        scale,
        kind,
        None if magnitude is None else _seen(magnitude, flat, (out,)),
        None if bias is None else _seen(bias, flat, (out,)),
    )


def _seen(
    leaf: LazyArray, view: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]
) -> LazyArray:
    """Return a lazy array with its axes in another order."""

    def fetch(names: Sequence[str]) -> Mapping[str, np.ndarray]:
        return {name: view(np.asarray(leaf.read())) for name in names}

    return LazyArray(leaf.name, shape, leaf.dtype, fetch)
