"""The variant that scripts/compare_heads.py compares with is what it says it is."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jmudsc import combine, infer_spec, paths, repair
from jmudsc.reordering.permute import identity

FILE = Path(__file__).parents[2] / "scripts" / "heads_apart.py"
SHAPES = {"in": (3, 5), "q": (5, 4, 2), "k": (5, 4, 2), "v": (5, 4, 2), "o": (4, 2, 3)}


def apply_fn(variables, x):
    x = jnp.tanh(x @ variables["in"])
    q, k, v = (jnp.einsum("btc,chd->bthd", x, variables[name]) for name in "qkv")
    scores = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k))
    return jnp.einsum("bhts,bshd,hdo->bto", scores, v, variables["o"])


@functools.cache
def script():
    spec = importlib.util.spec_from_file_location("heads_apart", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def problem():
    """Two networks, batches, both specs, and an assignment by either, the same one."""
    generator = np.random.default_rng(0)
    draw = lambda shape: generator.normal(size=shape).astype(np.float32)
    parents = [{name: draw(shape) for name, shape in SHAPES.items()} for _ in range(2)]
    batches = [draw((8, 6, 3)) for _ in range(2)]
    whole = infer_spec(apply_fn, parents[0], batches[0])
    specs = script().both_specs(
        whole, apply_fn, parents[0], batches[0], jax.random.key(3)
    )
    found = {name: np.stack([row, row]) for name, row in identity(whole).items()}
    ((head, own),) = script().value_heads(whole).items()
    found[head] = np.array([[0, 1, 2, 3], [3, 1, 0, 2]], np.int32)
    return parents, batches, specs, found, {**found, own: found[head]}


def test_values_get_heads_of_their_own_and_their_channels_go_with_them():
    whole, apart = problem()[2].values()
    ((head, own),) = script().value_heads(whole).items()
    scores, values = whole.children(head)
    assert apart.children(head) == (scores,)
    assert apart.children(own) == (values,)
    assert apart.labels.keys() - whole.labels.keys() == {own}


def test_where_both_pairings_agree_heads_apart_are_repaired_as_whole_heads_are():
    parents, batches, specs, together, split = problem()
    whole, apart = specs["whole"], specs["apart"]
    average = combine(whole, parents, together)
    expected = repair(whole, apply_fn, parents, together, average, batches)
    parts = apply_fn, parents, split, "repair", batches
    found = paths.flatten(script().repaired(whole, apart, *parts))
    assert script().differing(whole, split) == 0
    for path, leaf in paths.flatten(expected).items():
        np.testing.assert_allclose(found[path], leaf, 1e-4, 1e-5, err_msg=path)


def test_where_the_pairings_differ_another_function_comes_out():
    parents, batches, specs, together, split = problem()
    whole, apart = specs["whole"], specs["apart"]
    ((_, own),) = script().value_heads(whole).items()
    other = {**split, own: np.array([[0, 1, 2, 3], [3, 1, 2, 0]], np.int32)}
    assert script().differing(whole, together) == 0
    assert script().differing(whole, other) == 0.5
    for assignment, same in ((split, True), (other, False)):
        moved = combine(apart, parents, assignment, weights=[0.0, 1.0])
        gap = np.abs(apply_fn(moved, batches[0]) - apply_fn(parents[1], batches[0]))
        assert (gap.max() < 1e-4) == same
