"""Programs in which a symmetry seems to be there and is not: found by fuzzing.

Each is as small as can be. Outputs must stay as they are under what is derived.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jmudsc import collect, infer_spec, permute, random_permutations
from jmudsc.derivation.program import trace
from jmudsc.derivation.taps import find_taps

einsum = jnp.einsum


def of_places(v, x):
    """A layer with units of its own at each place: places x units."""
    return jnp.tanh(einsum("sd,sdb->sb", x, v["in"]))


def one_by_one(v):
    """Use the rows of a stack one by one: their units seem to be free."""
    return v["stack"][0] @ v["out0"] + v["stack"][1] @ v["out1"]


def reversed_stack(v):
    first = one_by_one(v)
    return first + ((v["stack"][::-1] + v["stack"]) * v["head"]).sum()


def mixed_stack(v):
    mixed = v["kernel"] @ v["stack"] + v["stack"]
    return one_by_one(v) + (mixed * v["head"]).sum()


def product_of_a_stack_with_itself(v):
    return one_by_one(v) + (v["stack"] @ v["stack"].T * v["head"]).sum()


def places_laid_out_anew(v, x):
    y = of_places(v, x)
    other = y.reshape(2, 3, 4).transpose(1, 0, 2).reshape(6, 4)
    return ((other + y) * v["head"]).sum()


def places_convolved(v, x):
    y = (of_places(v, x) + v["kernel"].sum(axis=-1))[None]
    return lax.conv_general_dilated(
        y, v["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )


def places_written_to_places(v, x):
    y, z = of_places(v, x), x @ v["score"]
    return (y.at[jnp.argmax(z @ z.T, axis=1)].add(y) * v["head"]).sum()


def best_of_a_place_looked_up_at_another(v, x):
    best = jnp.argmax(of_places(v, x) + v["table"], axis=1)
    return (v["table"][:, best] * v["head"]).sum()


def best_of_places_compared(v, x):
    best = jnp.argmax(of_places(v, x) + v["table"], axis=1)
    other = jnp.argmax(v["table"], axis=1)
    return ((best[:, None] == other[None]) * v["head"]).sum()


def groups_convolved(v, x):
    """Groups of features seem to be free at every place in a group."""
    y = einsum("ab,abx->bx", x, v["in"])
    z = lax.conv_general_dilated(
        y[None],
        v["in"],
        (1,),
        "SAME",
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=2,
    )
    return (einsum("ab,abx->bx", z[0], v["out"]) * v["head"]).sum()


def tiled(v):
    """Units that go with those of the other axis get repeats beside them."""
    y = jnp.tile(v["in"], (2, 1))
    return (einsum("ab,za->zb", y, y) * v["head"]).sum()


def repeats_of_places(v, x):
    """Units seem to go with each of the repeats, but these with places, at two axes."""
    y = einsum("ab,wb->wa", x, jnp.tile(x, (2, 1)))
    return einsum("ab,aby->b", y, v["in"])


def first_of_equal_units(v, x):
    return v["table"][jnp.argmax(x @ v["in"] > 0, axis=1)]


def order_of_equal_units(v, x):
    y = x @ v["in"]
    return lax.sort((jnp.round(y).astype(np.int32), y), num_keys=1)[1]


def whether_the_best_is_the_first(v, x):
    best, other = (jnp.argmax(x @ v[name], axis=1) for name in ("in", "table"))
    return best.astype(bool) == other.astype(bool)


def zeros_looked_up(v, x):
    never = jnp.argmax(x @ v["in"], axis=1) < 0
    return v["table"][never.astype(np.int32)]


def rolled_single_position(v, x):
    return x @ jnp.roll(v["in"], 1, axis=1)


def window_from_the_best(v, x):
    best = jnp.argmax(x @ v["in"], axis=1)
    return jax.vmap(lambda i: lax.dynamic_slice_in_dim(v["table"], i, 2))(best)


def whole_axis_from_the_best(v, x):
    """Only from the first unit on all are inside; else what is outside is filled."""
    best = jnp.argmax(x @ v["in"], axis=1)[:, None]
    numbers = lax.GatherDimensionNumbers((1, 2), (), (0,))
    return lax.gather(v["table"], best, numbers, (4, 2), mode="fill", fill_value=0)


def best_in_two_bits(v, x):
    """Of eight units each number is that of two."""
    best = jnp.argmax(x @ v["in"], axis=1).astype(jnp.uint2)
    places = jnp.arange(8).astype(jnp.uint2)
    return (best[:, None] == places[None]).astype(jnp.float32) @ v["table"]


def best_found_in_two_bits(v, x):
    best = lax.argmax(x @ v["in"], 1, jnp.int4)
    return v["table"][best.astype(jnp.int32)]


def places_counted_in_eight_bits(v, x):
    best = jnp.argmax(x @ v["in"], axis=1)
    places = lax.iota(jnp.uint8, 300).astype(jnp.int32)
    return (best[:, None] == places[None]).astype(jnp.float32) @ v["table"]


def places_in_half_precision(v, x):
    best = jnp.argmax(x @ v["in"], axis=1).astype(jnp.bfloat16)
    places = jnp.arange(300).astype(jnp.bfloat16)
    return (best[:, None] == places[None]).astype(jnp.float32) @ v["table"]


def zeros_of_two_signs(v, x):
    signs = jnp.array([0.0, -0.0, 0.0, -0.0])
    return jnp.where(1 / signs > 0, x @ v["in"], 0) @ v["table"]


STACK = {"stack": (2, 3), "out0": (3,), "out1": (3,)}
PLACES = {"in": (3, 2, 4)}
LOOKED_UP = {**PLACES, "table": (3, 4), "head": (3, 3)}

# function -> shapes of its leaves, and of its input
CASES = {
    reversed_stack: ({**STACK, "head": (2, 3)},),
    mixed_stack: ({**STACK, "head": (2, 3), "kernel": (2, 2)},),
    product_of_a_stack_with_itself: ({**STACK, "head": (2, 2)},),
    tiled: ({"in": (3, 6), "head": (6, 6)},),
    places_laid_out_anew: ({"in": (6, 2, 4), "head": (6, 4)}, (6, 2)),
    places_convolved: ({**PLACES, "kernel": (3, 4, 2)}, (3, 2)),
    places_written_to_places: ({**PLACES, "head": (3, 4), "score": (2, 2)}, (3, 2)),
    best_of_a_place_looked_up_at_another: (LOOKED_UP, (3, 2)),
    best_of_places_compared: (LOOKED_UP, (3, 2)),
    groups_convolved: ({"in": (2, 3, 6), "out": (3, 6, 4), "head": (6, 4)}, (2, 3)),
    repeats_of_places: ({"in": (8, 4, 3)}, (4, 3)),
    first_of_equal_units: ({"in": (2, 4), "table": (4, 2)}, (5, 2)),
    order_of_equal_units: ({"in": (2, 4)}, (5, 2)),
    whether_the_best_is_the_first: ({"in": (2, 4), "table": (2, 4)}, (9, 2)),
    zeros_looked_up: ({"in": (2, 4), "table": (4, 2)}, (5, 2)),
    window_from_the_best: ({"in": (2, 4), "table": (4, 2)}, (9, 2)),
    whole_axis_from_the_best: ({"in": (2, 4), "table": (4, 2)}, (9, 2)),
    best_in_two_bits: ({"in": (2, 8), "table": (8, 2)}, (9, 2)),
    best_found_in_two_bits: ({"in": (2, 20), "table": (20, 2)}, (9, 2)),
    places_counted_in_eight_bits: ({"in": (2, 300), "table": (300, 2)}, (9, 2)),
    places_in_half_precision: ({"in": (2, 300), "table": (300, 2)}, (9, 2)),
    zeros_of_two_signs: ({"in": (2, 4), "table": (4, 2)}, (9, 2)),
    rolled_single_position: ({"in": (2, 1)}, (5, 2)),
}


@pytest.mark.parametrize("fn", CASES, ids=lambda fn: fn.__name__)
def test_outputs_stay_as_they_are_under_what_is_derived(fn):
    generator = np.random.default_rng(0)

    def draw(shape):
        return generator.normal(size=shape).astype(np.float32)

    shapes, *inputs = CASES[fn]
    leaves = {name: draw(shape) for name, shape in shapes.items()}
    inputs = [draw(shape) for shape in inputs]

    def apply_fn(variables, batch):
        return fn(variables, *batch)

    spec, apply = infer_spec(apply_fn, leaves, inputs), jax.jit(apply_fn)
    for label in spec.labels.values():
        for parent in label.parents:
            assert set(spec.labels[parent].parents) <= set(label.parents)
    expected = np.asarray(apply(leaves, inputs), np.float32)
    for seed in range(5):
        perms = random_permutations(spec, jax.random.key(seed))
        actual = apply(permute(spec, leaves, perms), inputs)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def chosen_experts(v, x):
    """Experts with two hidden layers; their kernels are gathered for every input."""
    best = jnp.argmax(x @ v["router"], axis=1)
    y = jnp.tanh(einsum("bd,bdf->bf", x, v["up"][best]))
    y = jnp.tanh(einsum("bf,bfg->bg", y, v["middle"][best]))
    return einsum("bg,bgo->bo", y, v["down"][best])


def layers_by_counter(v, x):
    """Layers whose kernels are taken by the counter of a loop."""

    def layer(i, x):
        return x + jnp.tanh(x @ v["up"][i]) @ v["down"][i]

    return lax.fori_loop(0, 3, layer, x)


EXPERTS = {"router": (3, 4), "up": (4, 3, 5), "middle": (4, 5, 6), "down": (4, 6, 2)}
PICKED = {
    chosen_experts: (EXPERTS, "router:0 up:1 middle:1 down:1"),
    layers_by_counter: ({"up": (3, 3, 5), "down": (3, 5, 3)}, "up:1 down:1"),
}


@pytest.mark.parametrize("fn", PICKED, ids=lambda fn: fn.__name__)
def test_kernels_picked_by_an_index_are_kernels_and_no_activations(fn):
    shapes, consumed = PICKED[fn]
    generator = np.random.default_rng(0)
    leaves = {name: generator.normal(size=shape) for name, shape in shapes.items()}
    x = generator.normal(size=(7, 3))
    spec = infer_spec(fn, leaves, x)
    assert {f"{s.path}:{s.axis}" for s in spec.consumed} == set(consumed.split())
    taps = find_taps(trace(fn, leaves, x), spec)
    for name, label in spec.labels.items():
        if label.parents:
            (tap,) = taps[name]
            assert tap.place.var.aval.shape == (7, label.size)
    moments = collect(spec, fn, [leaves], [x])
    assert moments.keys() == {n for n in taps if taps[n]}
