"""Each rule against its primitive, on small arrays.

The cases are in `rule_cases`. The law: permute the operands by any permutations of the
labels, and the outputs come out permuted by the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from laws import check_law, random_arrays, walk, written
from rule_cases import CASES, conv, dot, ELEMENTWISE, window

from jmudsc.derivation.rules.elementwise import PRIMITIVES as SIMPLE
from jmudsc.derivation.rules.table import contraction, SHIPPED


@pytest.mark.parametrize(("fn", "shapes", "expected"), CASES.values(), ids=CASES)
def test_a_primitive_commutes_with_the_permutations_its_rule_leaves(
    fn, shapes, expected
):
    args = random_arrays(shapes)
    *seen, _ = walk(fn, args)
    assert written(*seen) == expected
    check_law(fn, args, *seen)


def random_shape(generator, size):
    shape = []
    while size > 1:
        divisors = [n for n in range(1, size + 1) if size % n == 0]
        shape.append(int(generator.choice(divisors)))
        size //= shape[-1]
    return tuple(shape)


@pytest.mark.parametrize("seed", range(25))
def test_a_reshape_between_random_shapes_commutes_with_permutations(seed):
    generator = np.random.default_rng(seed)
    size = int(generator.choice([24, 36, 60]))
    before, after = (random_shape(generator, size) for _ in range(2))
    args = random_arrays([before])
    *seen, _ = walk(lambda x: lax.reshape(x, after), args)
    check_law(lambda x: x.reshape(after), args, *seen)


@pytest.mark.parametrize(("fn", "operands"), ELEMENTWISE.values(), ids=ELEMENTWISE)
def test_an_elementwise_primitive_ties_its_operands(fn, operands):
    args = random_arrays([(3, 4)] * operands, low=0.1, high=0.9)
    *seen, _ = walk(fn, args)
    assert written(*seen) == ", ".join(["a b"] * operands) + " -> a b"
    check_law(fn, args, *seen)


def test_every_rule_has_a_case():
    absent = {n for n in ("log2", "one_minus_square") if not hasattr(lax, n)}  # 0.10
    seen = set()
    for fn, shapes, _ in CASES.values():
        seen.update(walk(fn, random_arrays(shapes))[-1])
    for fn, operands in ELEMENTWISE.values():
        seen.update(walk(fn, random_arrays([(3, 4)] * operands))[-1])
    ruled = {name for name, record in SHIPPED.items() if record.rule}
    assert ruled - seen == absent
    assert {record.name for record in SIMPLE} - set(ELEMENTWISE) == absent


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (
            lambda x: lax.linalg.eig(x[None] * x[:, None]),
            "is touched by eig, which has no rule",
        ),
        (
            lambda x: lax.linalg.cholesky(x[None] * x[:, None]),
            "is treated by position in cholesky",
        ),
        (lambda x: lax.rev(x, (0,)), "is treated by position in rev"),
        (lambda x: lax.cumsum(x), "is run along by cumsum"),
        (
            lambda x: lax.argmax(x, 0, np.int32) + x,
            "has positions that are used by add",
        ),
        (lambda x: x[::4], "is treated by position in slice"),
        (lambda x: lax.pad(x, 0.0, [(0, 0, 1)]), "is treated by position in pad"),
        (window(lax.max, (2,)), "is treated by position in reduce_window_max"),
        (
            lambda x: conv(
                x[None, :, None], jnp.ones((3, 1, 1)), ("NWC", "WIO", "NWC")
            ),
            "is a spatial axis of a convolution",
        ),
        (
            lambda x: x + lax.iota(np.float32, 6),
            "has positions that are used by add",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "function",
)
def test_a_fixed_axis_says_what_fixed_it(fn, reason):
    terms, ins, *_ = walk(fn, random_arrays([(6,)]))
    assert terms.reason(ins[0][0]) == reason


def test_contractions_say_what_they_sum_over():
    def equation(fn, *shapes):
        return jax.make_jaxpr(fn)(*random_arrays(shapes)).jaxpr.eqns[0]

    two = dot(((0, 2), (2, 1)))
    assert contraction(equation(two, (3, 4, 5), (6, 5, 3))) == ((0, 2), (2, 1))
    batched = dot(((2,), (1,)), ((0,), (0,)))
    assert contraction(equation(batched, (2, 3, 4), (2, 4, 5))) == ((2,), (1,))
    images, kernel = (2, 3, 5, 4), (6, 3, 3, 3)
    numbers = ("NCHW", "OIHW", "NCHW")
    assert contraction(equation(lambda x, w: conv(x, w, numbers), images, kernel)) == (
        (1,),
        (1,),
    )
    assert contraction(equation(lax.sort, (3,))) is None
