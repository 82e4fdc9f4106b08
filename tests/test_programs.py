"""How many programs a merge compiles depends on nothing but its shapes of batches.

On an accelerator every program takes seconds to compile, so they are counted, eager
operations included: not one for each layer, leaf, form of a leaf, or sweep.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import programs
from jax import lax

import jmudsc
from jmudsc.experiments import models

WIDTH, HIDDEN, HEADS, WORDS = 12, 20, 2, 16


def leaves_of_a_layer():
    square = dict.fromkeys(("query", "key", "value", "out"), (WIDTH, WIDTH))
    wide = {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    return {**square, **wide, "norm": (WIDTH,)}


def layer(x, v):
    y = x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * v["norm"][None, None]
    q, k, u = (
        (y @ v[name]).reshape(*x.shape[:2], HEADS, -1)
        for name in ("query", "key", "value")
    )
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, u).reshape(x.shape) @ v["out"]
    return x + jax.nn.silu(x @ v["up"]) @ v["down"]


def unrolled(v, tokens):
    x = v["embedding"][tokens]
    for number in range(len(v["layers"])):
        x = layer(x, v["layers"][str(number)])
    return x @ v["head"]


def scanned(v, tokens):
    x = lax.scan(lambda x, v: (layer(x, v), None), v["embedding"][tokens], v["layers"])
    return x[0] @ v["head"]


def decoder(seed, layers, is_scanned):
    draw = np.random.default_rng(seed)

    def drawn(*shape):
        return jnp.asarray(draw.standard_normal(shape, np.float32) / 3)

    each = [
        {name: drawn(*shape) for name, shape in leaves_of_a_layer().items()}
        for _ in range(layers)
    ]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *each)
    named = stack if is_scanned else {str(n): v for n, v in enumerate(each)}
    ends = {"embedding": drawn(WORDS, WIDTH), "head": drawn(WIDTH, WORDS)}
    return {"layers": named, **ends}


def of_decoders(layers, is_scanned):
    pair = [decoder(seed, layers, is_scanned) for seed in range(2)]
    draw = np.random.default_rng(9)
    batches = [draw.integers(WORDS, size=(8, 6), dtype=np.int32) for _ in range(2)]
    return scanned if is_scanned else unrolled, pair, batches, None


def of_images(model, side):
    pair = [models.init(model, jax.random.key(s), (side, side, 3)) for s in range(2)]
    draw = np.random.default_rng(9)
    batches = [draw.standard_normal((8, side, side, 3), np.float32) for _ in range(2)]
    update_fn = models.update_fn(model) if "batch_stats" in pair[0] else None
    return models.apply_fn(model), pair, batches, update_fn


def vit(layers):
    return of_images(models.ViT(5, 4, 24, layers, 3), 8)


CASES = {
    "ResNet-20x1": lambda: of_images(models.ResNet20(1, 5), 8),
    "ResNet-20x2": lambda: of_images(models.ResNet20(2, 5), 8),
    "ViT": lambda: vit(2),
    "deeper ViT": lambda: vit(3),
    "decoder": lambda: of_decoders(2, False),
    "deeper decoder": lambda: of_decoders(4, False),
    "scanned decoder": lambda: of_decoders(2, True),
    "deeper scanned decoder": lambda: of_decoders(4, True),
}
# Two keys; random numbers and a forward pass to check the spec; units, and sums of
# their products; an order of the labels. For networks with running statistics also an
# update of them.
FEW = ["_drawn", "two_keys", "units_of", "_added", "_order"]


MENDED = {"refit": "least-squares", "repair": "rescale"}


@functools.cache
def compiled_by(name, is_mended=False):
    apply_fn, pair, batches, update_fn = CASES[name]()
    key = jax.random.key(0)

    def named(variables, batch):
        return apply_fn(variables, batch)

    options = {"method": "mudsc-zip", "key": key, "update_fn": update_fn}
    if is_mended:
        options |= MENDED
    with programs() as first:
        jmudsc.merge(named, pair, batches, **options)
    with programs(anew=False) as again:
        jmudsc.merge(named, pair, batches, **options)
    return first.names, again.names


@pytest.mark.parametrize("name", list(CASES))
def test_a_merge_compiles_few_programs(name):
    resetting = ["from_zero"] if "ResNet" in name else []
    expected = sorted(f"jit({n})" for n in (*FEW, *resetting, "named"))
    assert sorted(compiled_by(name)[0]) == expected


@pytest.mark.parametrize("name", list(CASES))
def test_a_second_merge_compiles_nothing(name):
    assert compiled_by(name)[1] == []


# Kinds of what lies between two fitted layers, of layers that are fitted, of layers
# that are rescaled, and of inputs of norms by running statistics.
KINDS = {
    "ResNet-20x1": (17, 7, 0, 3),
    "ResNet-20x2": (17, 7, 0, 3),
    "ViT": (8, 6, 5, 0),
    "deeper ViT": (8, 6, 5, 0),
    "decoder": (8, 6, 3, 0),
    "deeper decoder": (8, 6, 3, 0),
    "scanned decoder": (8, 6, 3, 0),
    "deeper scanned decoder": (8, 6, 3, 0),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_refit_and_repair_compile_each_kind_of_block_once(name):
    merging = [*FEW, "named"]  # `_added` is what adds a batch to the moments too
    names = ("_segment", "_added", "_of_outputs", "_mean_and_variance")
    more = [
        n for n, count in zip(names, KINDS[name], strict=True) for _ in range(count)
    ]
    found = compiled_by(name, True)[0]
    assert sorted(found) == sorted(f"jit({n})" for n in (*merging, *more))
    assert len(found) <= 40


@pytest.mark.parametrize("name", list(KINDS))
def test_a_second_refit_and_repair_compile_nothing(name):
    assert compiled_by(name, True)[1] == []


def test_a_program_for_every_number_of_units_where_products_are_large(monkeypatch):
    monkeypatch.setattr("jmudsc.matching.similarity.are_large", lambda *_: True)
    counts = {}
    for layers in (2, 4):
        apply_fn, pair, batches, _ = of_decoders(layers, False)
        for method in ("mudsc-align", "mudsc-zip"):
            with programs() as compiled:
                options = {"method": method, "key": jax.random.key(0)}
                jmudsc.merge(apply_fn, pair, batches, **options)
            counts[method, layers] = len(compiled.names)
    assert counts["mudsc-zip", 2] == counts["mudsc-zip", 4] < 40
    assert counts["mudsc-align", 2] == counts["mudsc-align", 4] < 40
    assert counts["mudsc-zip", 2] > len(FEW) + 1
