"""Save LoRA: to a folder that PEFT loads, or to a tree of JAX arrays."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jmudsc import paths
from jmudsc.checkpoints.atomic import building
from jmudsc.checkpoints.safetensors import write_safetensors
from jmudsc.lazy import in_memory, present
from jmudsc.lora.load_lora import CONFIG, PREFIX, WEIGHTS
from jmudsc.lora.lora import Lora, Update


def save_lora(
    path: str | os.PathLike[str],
    adapter: Lora,
    *,
    base_model: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Save an adapter in PEFT's layout, whole or not at all.

    Args:
        path: the folder to make, on a local file system.
        adapter: one whose names are those of torch modules: from `load_lora`, or
            from `factor_loras` of such.
        base_model: what to write as the name of the base.
        overwrite: replace a folder that holds an adapter and nothing else.

    Returns:
        The absolute path of the folder.

    Raises:
        FileExistsError: if something is at `path` that may not be replaced.
        ValueError: if names are those of leaves of a JAX tree.
    """
    target = Path(path).expanduser().resolve()
    if not adapter.is_torch:
        raise ValueError(
            f"{target}: expected an adapter of torch modules, got one of a JAX tree, "
            "for which PEFT has no names. Save lora_to_tree(adapter) as a tree."
        )
    _check_free(target, overwrite)
    arrays = _arrays(adapter)
    with building(target, overwrite) as folder:
        folder.mkdir()
        write_safetensors(folder / WEIGHTS, in_memory(arrays))
        (folder / CONFIG).write_text(json.dumps(_config(adapter, base_model), indent=2))
    return target


def lora_to_tree(adapter: Lora) -> dict[str, Any]:
    """Return the factors of an adapter as a tree, as `nnx.LoRA` names them.

    Args:
        adapter: one whose names are those of leaves or layers of a JAX tree; scales
            are multiplied into the factors that write.

    Returns:
        Nested dicts with `lora_a` and `lora_b` at every target, and with the leaves
        that are replaced.

    Raises:
        ValueError: if names are those of torch modules.

    Example:
        >>> import numpy as np
        >>> from jmudsc.lora.lora import Lora, Update
        >>> update = Update(np.ones((3, 1)), np.ones((1, 2)), scale=2.0)
        >>> lora_to_tree(Lora("a", {"mlp": update}))["mlp"]["lora_b"].tolist()
        [[2.0, 2.0]]
    """
    if adapter.is_torch:
        raise ValueError(
            f"{adapter.where}: expected an adapter of a JAX tree, got one of torch "
            "modules. Save it with save_lora."
        )
    leaves = dict(adapter.replaced)
    for name, update in adapter.updates.items():
        b = np.asarray(present(update.b))
        leaves[f"{name}/lora_a"] = np.asarray(present(update.a))
        leaves[f"{name}/lora_b"] = (b * b.dtype.type(update.scale)).astype(b.dtype)
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, last = path.split("/")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
        place[last] = leaf
    return tree


def _check_free(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    names = {x.name for x in target.iterdir()} if target.is_dir() else {target.name}
    if overwrite and target.is_dir() and names <= {WEIGHTS, CONFIG}:
        return
    also = sorted(names - {WEIGHTS, CONFIG})
    what = f"one with {paths.listed_in_line(also)}" if also else "one that exists"
    raise FileExistsError(
        f"{target}: expected a free path, got {what}. Choose another"
        f"{'' if also else ' or pass overwrite=True (--overwrite)'}."
    )


def _arrays(adapter: Lora) -> dict[str, np.ndarray]:
    """Return the arrays in torch's order, by their names."""
    found: dict[str, np.ndarray] = {}
    for module, update in adapter.updates.items():
        found |= {f"{module}.{n}": leaf for n, leaf in _parts(update).items()}
    for name, leaf in adapter.replaced.items():
        module, _, word = name.rpartition(".")
        if module in adapter.updates:
            name = f"{module}.base_layer.{word}"
        found[name] = np.asarray(present(leaf))
    return {f"{PREFIX}{name}": np.asarray(x, order="C") for name, x in found.items()}


def _parts(update: Update) -> dict[str, np.ndarray]:
    a, b = (np.asarray(present(x)) for x in (update.a, update.b))
    a, b = np.moveaxis(a, -1, 0), b.T
    if update.kind == "embedding":
        found = {"lora_embedding_A": a, "lora_embedding_B": b}
    else:
        window = (1,) * (a.ndim - 2)
        found = {"lora_A.weight": a, "lora_B.weight": b.reshape(*b.shape, *window)}
    if update.bias is not None:
        found["lora_B.bias"] = np.asarray(present(update.bias))
    if update.magnitude is not None:
        shape = (1, -1, *(1,) * (a.ndim - 2)) if a.ndim > 2 else (-1,)
        magnitude = np.asarray(present(update.magnitude))
        found["lora_magnitude_vector"] = magnitude.reshape(shape)
    return found


def _config(adapter: Lora, base_model: str | None) -> dict[str, Any]:
    ranks = {name: update.rank for name, update in adapter.updates.items()}
    alphas = {n: update.scale * update.rank for n, update in adapter.updates.items()}
    rank, alpha = _commonest(ranks.values(), 1), _commonest(alphas.values(), 1.0)
    updates = adapter.updates.values()
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "task_type": None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
        "target_modules": sorted(adapter.updates),
        "modules_to_save": _saved(adapter) or None,
        "bias": "all" if _biases(adapter) else "none",
        "lora_bias": any(update.bias is not None for update in updates),
        "use_dora": any(update.magnitude is not None for update in updates),
        "use_rslora": False,
        "fan_in_fan_out": adapter.fan_in_fan_out,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
    }


def _commonest(values: Any, otherwise: Any) -> Any:
    values = list(values)
    return max(values, key=values.count) if values else otherwise


def _patterns(values: Mapping[str, Any], common: Any) -> dict[str, Any]:
    return {f"^{re.escape(n)}": x for n, x in values.items() if x != common}


def _biases(adapter: Lora) -> Sequence[str]:
    return [name for name in adapter.replaced if name.endswith("bias")]


def _saved(adapter: Lora) -> list[str]:
    """Return the modules whose leaves are saved whole, not counting lone biases."""
    modules = {
        name.rpartition(".")[0] for name in adapter.replaced if name[-4:] != "bias"
    }
    return sorted(modules - set(adapter.updates))
