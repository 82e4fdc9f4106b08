"""Adapters of small bases, as PEFT writes them and as trees."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny_llama
from safetensors.numpy import save_file

from jmudsc.lora.flax_pairs import lora_from_tree
from jmudsc.lora.load_lora import load_lora
from jmudsc.lora.lora import Lora


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def write_peft(
    folder: Path, arrays: dict[str, np.ndarray], prefix=True, **config: Any
) -> Path:
    """Write an adapter of modules named in torch's way."""
    folder.mkdir(parents=True, exist_ok=True)
    before = "base_model.model." if prefix else ""
    save_file(
        {before + name: np.asarray(x, order="C") for name, x in arrays.items()},
        folder / "adapter_model.safetensors",
    )
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 6} | config
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def peft(folder: Path, arrays: dict[str, np.ndarray], **config: Any) -> Lora:
    return load_lora(write_peft(folder, arrays, **config))


def pair(seed: int, module: str, into: int, out: int, rank: int = 2):
    """Return the factors of a linear layer of torch."""
    return {
        f"{module}.lora_A.weight": draw(seed, rank, into),
        f"{module}.lora_B.weight": draw(seed + 100, out, rank),
    }


# The layer that the adapters of `llama_with_two` change.
ADAPTED = "model.layers.1.mlp.up_proj"


def llama_with_two(folder: Path) -> dict[str, np.ndarray]:
    """Write a base of Hugging Face, `llama`, and two adapters of it, `l0` and `l1`."""
    named = tiny_llama.leaves(0)
    tiny_llama.write(folder / "llama", named)
    out, into = named[f"{ADAPTED}.weight"].shape
    for n in range(2):
        write_peft(folder / f"l{n}", pair(n, ADAPTED, out, into))
    return named


def tree(seed: int, sizes: dict[str, tuple[int, int]], rank: int = 2, **options: Any):
    """Return an adapter of the leaves of a JAX tree."""
    leaves: dict[str, Any] = {}
    for number, (name, (into, out)) in enumerate(sizes.items()):
        leaves[f"{name}/lora_a"] = draw(10 * seed + number, into, rank)
        leaves[f"{name}/lora_b"] = draw(10 * seed + number + 5000, rank, out)
    return lora_from_tree(leaves, **options)


def delta(adapter: Lora, name: str) -> np.ndarray:
    """Return what an adapter of a tree adds to a matrix (in, out), in float64."""
    update = adapter.updates[name]
    return update.scale * np.float64(update.a) @ np.float64(update.b)
