"""Two decoders in sharded safetensors are merged from disk to disk, leaf by leaf."""

import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

import jmudsc

LAYERS, WIDTH, HIDDEN, WORDS = 4, 32, 64, 50


def layer(x, p):
    """One block: attention that looks back only, and a gated MLP."""
    q, k, v = (x @ p[name] for name in ("query", "key", "value"))
    scores = q @ k.mT / WIDTH**0.5
    seen = jax.numpy.tri(x.shape[1], dtype=bool)
    x = x + jax.nn.softmax(jax.numpy.where(seen, scores, -1e9)) @ v @ p["out"]
    return x + (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"], None


def apply_fn(variables, tokens):
    """Return logits `[samples, positions, words]`; the layers are stacked."""
    x, _ = jax.lax.scan(layer, variables["embed"][tokens], variables["layers"])
    return x @ variables["head"]


def write(folder, seed):
    """Write a network in two files with an index, as large ones come."""
    draw = np.random.default_rng(seed).normal
    square, wide = (LAYERS, WIDTH, WIDTH), (LAYERS, WIDTH, HIDDEN)
    shapes = {f"layers/{n}": square for n in ("query", "key", "value", "out")}
    shapes |= {"layers/gate": wide, "layers/up": wide}
    shapes |= {"layers/down": (LAYERS, HIDDEN, WIDTH)}
    shapes |= {"embed": (WORDS, WIDTH), "head": (WIDTH, WORDS)}
    leaves = {
        path: (draw(size=shape) / shape[-2] ** 0.5).astype(np.float32)
        for path, shape in shapes.items()
    }
    names = sorted(leaves)
    files = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    folder.mkdir()
    for file, own in files.items():
        save_file({name: leaves[name] for name in own}, folder / file)
    index = {name: file for file, own in files.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index})
    )


with tempfile.TemporaryDirectory() as place:
    folder = Path(place)
    for seed, name in enumerate(("a", "b")):
        write(folder / name, seed)
    parents = [
        jmudsc.load(folder / name / "model.safetensors.index.json", lazy=True)
        for name in ("a", "b")
    ]
    random = np.random.default_rng(0)
    batches = [random.integers(0, WORDS, (8, 12)) for _ in range(2)]
    result = jmudsc.merge(apply_fn, parents, batches, key=jax.random.key(0))
    jmudsc.save(folder / "merged", result)
    merged = jmudsc.load(folder / "merged")
    print(result.spec)
    print("outputs", apply_fn(merged, batches[0]).shape)
