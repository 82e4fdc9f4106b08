import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax import lax

from jmudsc import infer_spec
from jmudsc.derivation.program import run, trace
from jmudsc.derivation.terms.values import Place
from jmudsc.repairs.find_layers import find_layers
from jmudsc.repairs.stepwise import values_at, way_through

WIDTH = 3


def of_blocks(block, count):
    """Return the segments between the products of a chain of blocks."""

    def apply_fn(v, x):
        for number in range(count):
            x = block(v, x, number)
        return x

    shapes = {"stack": (count, WIDTH, WIDTH), "gain": (count, WIDTH)}
    leaves = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
    program = trace(apply_fn, leaves, jax.ShapeDtypeStruct((5, WIDTH), jnp.float32))
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    return way_through(program, [(e, e.invars[0]) for e in products]).segments


def scaled(v, x, number):
    return jnp.tanh(x @ v["stack"][number]) * v["gain"][number][None] / (number + 2.0)


def looped(v, x, number):
    step = lambda carry, _: (jnp.sin(carry), carry)
    return lax.scan(step, x @ v["stack"][number], length=2)[1].sum(axis=0)


@pytest.mark.parametrize("block", [scaled, looped])
def test_blocks_that_differ_in_leaves_and_numbers_are_alike(block):
    _, *between = of_blocks(block, 4)
    assert len({hash(segment) for segment in between}) == 1
    assert between[0] == between[1] == between[2]


@pytest.mark.parametrize(
    "block",
    [
        lambda v, x, n: (x @ v["stack"][n]) ** (n + 2),
        lambda v, x, n: lax.pow(x @ v["stack"][n], n + 2.0),
        lambda v, x, n: [jnp.tanh, jnp.sin, jnp.exp][n % 3](x @ v["stack"][n]),
        lambda v, x, n: (x @ v["stack"][n]).astype([jnp.bfloat16, x.dtype][n % 2]),
        lambda v, x, n: lax.scan(
            lambda c, _: (c * (n + 1.5), None), x @ v["stack"][n], length=2
        )[0],
    ],
)
def test_blocks_that_do_something_else_are_not(block):
    _, first, second, *_ = of_blocks(block, 4)
    assert first != second


NETS = ["attention", "grouped convolution", "experts", "stacked layers", "recurrence"]


@pytest.mark.parametrize("name", NETS)
def test_values_between_segments_are_those_of_the_whole_program(name):
    net = zoo.NETS[name]()
    program = trace(net.apply_fn, net.variables, net.batch)
    spec = infer_spec(net.apply_fn, net.variables, net.batch)
    layers = find_layers(program, spec)
    stops = [(stop.eqn, stop.operand) for stop in layers.stops]
    flat = jax.tree.leaves((net.variables, net.batch))
    operands = [Place(stop.operand) for stop in layers.stops]
    expected = run(layers.program, flat, operands)
    leaves = dict(zip(program.paths, flat, strict=False))
    found = list(values_at(layers.program, stops, leaves, net.batch))
    assert len(found) == len(stops) > 0
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_leaves_may_change_while_it_stops():
    apply_fn = lambda v, x: jnp.tanh(x @ (2 * v["a"])) @ v["b"] + v["a"][:, :1].sum()
    leaves = {"a": np.eye(2, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
    x = np.float32([[1, 2]])
    program = trace(apply_fn, leaves, x)
    products = [e for e in program.eqns if e.primitive.name == "dot_general"]
    ways = values_at(program, [(e, e.invars[0]) for e in products], leaves, x)
    np.testing.assert_array_equal(next(ways), x)
    leaves["a"] = np.zeros((2, 2), np.float32)
    np.testing.assert_array_equal(next(ways), np.zeros((1, 2)))
