import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from fused_attention import attend

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


def solving(decomposition):
    """A decomposition of a matrix as it is."""
    return lambda x: decomposition(x, **NOT_SYMMETRIZED.get(decomposition, {}))


NOT_SYMMETRIZED = {
    jax.lax.linalg.cholesky: {"symmetrize_input": False},
    jax.lax.linalg.eigh: {"symmetrize_input": False},
}
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
    "cholesky": (solving(jax.lax.linalg.cholesky), [(2, 9, 9)], 2 * 9**3 // 3),
    "eigh": (solving(jax.lax.linalg.eigh), [(2, 4, 4)], 2 * 9 * 4**3),
    "lu": (solving(jax.lax.linalg.lu), [(2, 3, 3)], 2 * 2 * 3**3 // 3),
    "qr": (solving(jax.lax.linalg.qr), [(5, 3)], 4 * 9 * (5 - 1)),
    "singular values": (
        lambda x: jax.lax.linalg.svd(x, compute_uv=False),
        [(3, 6)],
        4 * 6 * 9 - 4 * 9,
    ),
    "svd": (
        solving(jax.lax.linalg.svd),
        [(3, 6)],
        4 * 36 * 3 + 8 * 6 * 9 + 9 * 27,
    ),
    "triangular": (
        lambda x, y: jax.lax.linalg.triangular_solve(x, y, left_side=True),
        [(2, 3, 3), (2, 3, 5)],
        2 * 9 * 5,
    ),
    "attention": (
        lambda q, k, v: attend(q, k, v),
        [(2, 5, 3, 4), (2, 6, 3, 4), (2, 6, 3, 7)],
        2 * 2 * 3 * 5 * 6 * (4 + 7),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operations_are_those_counted_by_hand(name):
    function, shapes, flops = CASES[name]
    work = work_of(traced(function, *shapes))
    assert work.flops == flops
    assert work.endless == (name == "while")
    assert not work.unknown


def test_what_no_cost_is_known_of_is_named():
    def run(x):
        return jax.lax.cond(x.sum() > 0, lambda x: jnp.abs(jnp.fft.fft(x)), jnp.tanh, x)

    assert work_of(traced(run, (4, 5))).unknown == {"fft"}


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
