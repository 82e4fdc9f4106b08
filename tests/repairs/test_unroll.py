import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jmudsc.derivation.program import run, trace
from jmudsc.derivation.terms.values import Place
from jmudsc.repairs.unroll import unrolled

STEPS, WIDTH = 4, 3


def forwards(v, x):
    step = lambda h, k: (jnp.tanh(h @ k), h.sum(axis=1))
    return lax.scan(step, x, v["stack"])


def backwards(v, x):
    step = lambda h, k: (jnp.tanh(h @ k), h.sum(axis=1))
    return lax.scan(step, x, v["stack"], reverse=True)


def recurrent(v, x):
    step = lambda h, x: (jnp.tanh(h @ v["stack"][0] + x[:, None]), h)
    return lax.scan(step, jnp.zeros_like(x), x.T)


def nested(v, x):
    inner = lambda h, k: (jnp.tanh(h @ k), None)
    outer = lambda h, _: (lax.scan(inner, h, v["stack"])[0], h[0])
    return lax.scan(outer, x, length=2)


def counted(v, x):
    return lax.fori_loop(0, STEPS, lambda i, h: jnp.tanh(h @ v["stack"][i]) + i, x)


def with_state_of_leaves(v, x):
    step = lambda h, x: (h @ v["stack"][0] + x[None], None)
    return lax.scan(step, v["stack"][1], x)[0]


def with_constants(v, x):
    step = lambda h, k: (h @ k + jnp.arange(float(WIDTH))[None], 2.0)
    return lax.scan(step, x, v["stack"])


CASES = [
    forwards,
    backwards,
    recurrent,
    nested,
    counted,
    with_state_of_leaves,
    with_constants,
]


def drawn():
    draw = np.random.default_rng(0)
    stack = draw.standard_normal((STEPS, WIDTH, WIDTH), np.float32)
    x = draw.standard_normal((5, WIDTH), np.float32)
    return {"stack": jnp.asarray(stack)}, jnp.asarray(x)


def names(program):
    return [eqn.primitive.name for eqn in program.eqns]


@pytest.mark.parametrize("apply_fn", CASES)
def test_a_program_without_its_loops_computes_the_same(apply_fn):
    leaves, x = drawn()
    flat = unrolled(trace(apply_fn, leaves, x))
    assert "scan" not in names(flat.program)
    wanted = [Place(var) for var in flat.program.outvars]
    found = run(flat.program, jax.tree.leaves((leaves, x)), wanted)
    expected = jax.tree.leaves(apply_fn(leaves, x))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("apply_fn", "most"),
    [
        (lambda v, x: jnp.tanh(x @ v["stack"][0]), 9),
        (forwards, STEPS - 1),
        (lambda v, x: lax.scan(lambda h, _: (h + 1, h), x, length=2), 9),
    ],
    ids=["no loop", "too many steps", "no leaf inside"],
)
def test_a_program_without_loops_to_write_out_is_the_same_program(apply_fn, most):
    program = trace(apply_fn, *drawn())
    assert unrolled(program, most).program is program


def test_what_every_step_computes_of_leaves_alone_is_computed_once():
    def apply_fn(v, x):
        step = lambda h, x: (jnp.tanh(h @ jnp.exp(v["stack"][0])) + x[:, None], None)
        return lax.scan(step, x, x.T)[0]

    program = unrolled(trace(apply_fn, *drawn())).program
    assert names(program).count("exp") == 1
    assert names(program).count("dot_general") == WIDTH


def test_values_are_told_by_where_they_were_and_by_the_step():
    program = trace(nested, *drawn())
    flat = unrolled(program)
    products = [e for e in flat.program.eqns if e.primitive.name == "dot_general"]
    found = [flat.origin[eqn.outvars[0]] for eqn in products]
    assert [steps for _, steps in found] == [
        (outer, inner) for outer in range(2) for inner in range(STEPS)
    ]
    assert len({place for place, _ in found}) == 1
    (place, _), *_ = found
    assert [loop.primitive.name for loop in place.loops] == ["scan", "scan"]


def test_the_first_state_of_a_loop_counts_as_data():
    flat = unrolled(trace(recurrent, *drawn()))
    products = [e for e in flat.program.eqns if e.primitive.name == "dot_general"]
    assert len(products) == WIDTH
    assert all(eqn.invars[0] in flat.data for eqn in products)
