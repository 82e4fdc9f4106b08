"""Stacked layers: matched as the same layers one by one, at the cost of those."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jmudsc import (
    check_spec,
    collect,
    combine,
    infer_spec,
    match,
)
from jmudsc.matching.similarity import activation_similarity, weight_similarity
from jmudsc.paths import flatten
from jmudsc.reordering.permute import identity

LAYERS, WIDTH, HIDDEN, HEADS = 2, 8, 12, 2


def block(x, layer):
    heads = (*x.shape[:2], HEADS, -1)
    q, k, v = ((x @ layer[name]).reshape(heads) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ layer["mix"]
    return x + jax.nn.relu(x @ layer["in"] + layer["bias"][None, None]) @ layer["out"]


def scanned(variables, x):
    x = x @ variables["first"]
    x, _ = lax.scan(lambda x, layer: (block(x, layer), None), x, variables["layers"])
    return x @ variables["last"]


def unrolled(variables, x):
    x = x @ variables["first"]
    for number in range(LAYERS):
        x = block(x, variables["layers"][str(number)])
    return x @ variables["last"]


def stacked(key):
    keys = iter(jax.random.split(key, 9))
    square = (LAYERS, WIDTH, WIDTH)
    shapes = dict.fromkeys(("query", "key", "value", "mix"), square)
    shapes |= {"in": (LAYERS, WIDTH, HIDDEN), "bias": (LAYERS, HIDDEN)}
    shapes["out"] = (LAYERS, HIDDEN, WIDTH)
    layers = {name: jax.random.normal(next(keys), s) for name, s in shapes.items()}
    ends = [jax.random.normal(k, (WIDTH, WIDTH)) for k in keys]
    return {"first": ends[0], "layers": layers, "last": ends[1]}


def apart(variables):
    layers = {
        str(n): jax.tree.map(lambda x, n=n: x[n], variables["layers"])
        for n in range(LAYERS)
    }
    return {**variables, "layers": layers}


@pytest.fixture(scope="module")
def both():
    """Two networks as stacks and layer by layer: functions, variables, specs."""
    models = [stacked(jax.random.key(n)) for n in range(2)]
    parts = [apart(model) for model in models]
    batches = [jax.random.normal(jax.random.key(7 + n), (4, 5, WIDTH)) for n in (0, 1)]
    specs = [
        infer_spec(scanned, models[0], batches[0]),
        infer_spec(unrolled, parts[0], batches[0]),
    ]
    check_spec(specs[0], scanned, models[0], batches[0], key=jax.random.key(0))
    return models, parts, batches, specs


@pytest.fixture(scope="module")
def collected(both):
    """The moments of the stacks, and of the layers one by one."""
    models, parts, batches, (stack, single) = both
    ours = collect(stack, scanned, models, batches)
    return ours, collect(single, unrolled, parts, batches)


def labels_of(spec, leaf):
    """The label innermost on the last axis of a leaf, of each of its layers."""
    if f"layers/{leaf}" in spec.axes:
        return [spec.axes[f"layers/{leaf}"][-1].labels()[-1]] * LAYERS
    return [spec.axes[f"layers/{n}/{leaf}"][-1].labels()[-1] for n in range(LAYERS)]


LEAVES = ("bias", "key", "value")


@pytest.mark.parametrize("leaf", LEAVES)
def test_activations_of_a_stack_are_those_of_its_layers(leaf, both, collected):
    _, _, _, (stack, single) = both
    ours, theirs = collected
    for n, (one, other) in enumerate(
        zip(labels_of(stack, leaf), labels_of(single, leaf), strict=True)
    ):
        found, expected = (
            activation_similarity(m[name]) for m, name in ((ours, one), (theirs, other))
        )
        assert found.shape == (LAYERS, *expected.shape)
        np.testing.assert_allclose(found[n], expected, atol=1e-5)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("leaf", LEAVES)
def test_weights_of_a_stack_are_those_of_its_layers(leaf, within, both):
    models, parts, _, (stack, single) = both
    similarity = []
    for spec, pair in ((stack, models), (single, parts)):
        start = {
            n: np.tile(r, (2,) + (1,) * r.ndim).astype(np.int32)
            for n, r in identity(spec).items()
        }
        leaves = [flatten(model) for model in pair]
        similarity.append(
            [
                weight_similarity(spec, leaves, start, name, within=within)
                for name in labels_of(spec, leaf)
            ]
        )
    for n, (found, expected) in enumerate(zip(*similarity, strict=True)):
        assert found.shape == (LAYERS, *expected.shape)
        np.testing.assert_allclose(found[n], expected, atol=1e-5)


@pytest.mark.parametrize("method", ["activation-align", "activation-zip"])
def test_a_stack_is_matched_as_its_layers_are(method, both, collected):
    models, parts, _, specs = both
    merged = []
    for spec, pair, moments in zip(specs, (models, parts), collected, strict=True):
        found = match(spec, pair, moments, method=method, key=jax.random.key(0))
        merged.append(combine(spec, pair, found.assignment))
    ours, theirs = apart(merged[0]), merged[1]
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
