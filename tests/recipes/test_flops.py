import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc.derivation.program import trace
from jmudsc.recipes.flops import live_bytes, work_of


def traced(function, *shapes):
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    variables = {str(n): struct for n, struct in enumerate(structs[1:])}
    return trace(lambda v, x: function(x, *v.values()), variables, structs[0])


def scanned(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def looped(x, w):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)


def chosen(x, w, v):
    return jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x @ v @ v.T @ w)


CASES = {
    "product": (lambda x, w: x @ w, [(4, 5), (5, 3)], 2 * 4 * 5 * 3),
    "two": (lambda x, w, v: x @ w @ v, [(4, 5), (5, 3), (3, 2)], 2 * 4 * (15 + 6)),
    "batched": (
        lambda x, w: jnp.einsum("bij,bjk->bik", x, w),
        [(2, 4, 5), (2, 5, 3)],
        2 * 2 * 4 * 5 * 3,
    ),
    "convolution": (tiny.conv, [(2, 4, 4, 3), (3, 3, 3, 5)], 2 * 2 * 16 * 5 * 27),
    "scan": (scanned, [(4, 5), (7, 5, 5)], 7 * 2 * 4 * 25),
    "while": (looped, [(4, 5), (5, 5)], 2 * 4 * 25),
    "cond": (chosen, [(4, 5), (5, 3), (5, 2)], 2 * 4 * (10 + 10 + 15)),
    "sum": (lambda x: x.sum(), [(4, 5)], 0),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_are_those_counted_by_hand(name):
    function, shapes, flops = CASES[name]
    work = work_of(traced(function, *shapes))
    assert work.flops == flops
    assert work.endless == (name == "while")


@pytest.mark.parametrize("name", ["mlp", "cnn", "attention"])
def test_operations_are_about_those_that_the_compiler_counts(name):
    net = tiny.NETS[name]
    variables, batch = tiny.variables(net, 0), tiny.batch(net, 0)
    lowered = jax.jit(net.apply_fn).lower(variables, batch)
    counted = work_of(trace(net.apply_fn, variables, batch)).flops
    # The compiler counts what is not a product too, and no products with padding.
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.5)


def test_a_gram_matrix_is_counted_for_every_input_of_a_map():
    work = work_of(traced(lambda x, w: x @ w, (4, 5), (5, 3)))
    assert work.grams == 2 * 4 * 5 * (5 + 3)
    assert work.moved == 4 * (20 + 15 + 12)


def test_a_value_lives_until_it_is_read_for_the_last_time():
    program = traced(lambda x: jnp.tanh(x) + jnp.sin(jnp.cos(x)), (10,))
    assert live_bytes(program) == 3 * 40
    program = traced(lambda x: jnp.sin(jnp.cos(jnp.tanh(x))), (10,))
    assert live_bytes(program) == 2 * 40
    program = traced(lambda x, w: scanned(x, w), (4, 5), (7, 5, 5))
    assert live_bytes(program) >= 3 * np.zeros((4, 5), np.float32).nbytes
