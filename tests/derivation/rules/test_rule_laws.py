"""The law of every rule on random shapes.

Each case draws shapes and parameters for one kind of primitive from a generator. The
law: permute the operands by whatever the rule leaves free, and the outputs come out
permuted by the same. What is left free is compared with what was written by hand on
fixed shapes in `test_rules`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rule_cases
from fused_attention import attending, Mask
from jax import lax
from laws import check_law, random_arrays, walk


def some(generator, rank, most=5):
    return tuple(int(n) for n in generator.integers(2, most, rank))


def axis_of(generator, shape):
    return int(generator.integers(len(shape)))


def elementwise(generator):
    shape = some(generator, 3)
    other = tuple(n if generator.random() < 0.6 else 1 for n in shape)
    return lambda x, y: jnp.tanh(x * y) - lax.exp(x), [shape, other]


def broadcast(generator):
    shape = some(generator, 2)
    new = (*shape[:1], *some(generator, 1), *shape[1:])
    return lambda x: lax.broadcast_in_dim(x, new, (0, 2)), [shape]


def transpose(generator):
    shape = some(generator, 4)
    order = tuple(map(int, generator.permutation(4)))
    return lambda x: lax.transpose(x, order), [shape]


def reduction(generator):
    shape = some(generator, 4)
    axes = tuple(sorted(map(int, generator.permutation(4)[:2])))
    fn = [jnp.sum, jnp.max, jnp.min, jnp.prod][generator.integers(4)]
    return lambda x: fn(x, axis=axes), [shape]


def cumulative(generator):
    shape = some(generator, 3)
    axis = axis_of(generator, shape)
    fn = [lax.cumsum, lax.cummax, lax.cumlogsumexp][generator.integers(3)]
    return lambda x: fn(x, axis=axis), [shape]


def product(generator):
    """Contract, map over and keep axes in random places of both operands."""
    batch, summed = some(generator, 1), some(generator, 2)
    free = some(generator, 2)
    orders = [generator.permutation(4) for _ in range(2)]
    sides = [
        np.array([*batch, *summed, free[i]])[order] for i, order in enumerate(orders)
    ]
    at = [[int(np.flatnonzero(order == k)[0]) for k in range(4)] for order in orders]
    numbers = (
        tuple(tuple(where[1:3]) for where in at),
        tuple(tuple(where[:1]) for where in at),
    )
    shapes = [tuple(map(int, side)) for side in sides]
    return lambda x, y: lax.dot_general(x, y, numbers), shapes


def convolution(generator):
    rank, groups = int(generator.integers(1, 4)), int(generator.integers(1, 4))
    inputs, outputs = some(generator, 2, 4)
    size, kernel = some(generator, rank, 6), some(generator, rank, 4)
    letters = "DHW"[:rank]
    options = {
        "window_strides": some(generator, rank, 4),
        "padding": "SAME",
        "rhs_dilation": some(generator, rank, 4),
        "feature_group_count": groups,
        "dimension_numbers": (f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    }
    shapes = [(2, *size, groups * inputs), (*kernel, inputs, groups * outputs)]
    return lambda x, w: lax.conv_general_dilated(x, w, **options), shapes


def transposed_convolution(generator):
    inputs, outputs, size = some(generator, 3)
    strides = some(generator, 1)
    numbers = ("NHC", "HIO", "NHC")
    return lambda x, w: lax.conv_transpose(
        x, w, strides, "SAME", dimension_numbers=numbers
    ), [(2, size, inputs), (3, inputs, outputs)]


def pooling(generator):
    shape = (*some(generator, 3, 6), int(generator.integers(2, 5)))
    window = (1, *some(generator, 2, 4), 1)
    return lambda x: lax.reduce_window(x, -np.inf, lax.max, window, window, "SAME"), [
        shape
    ]


def concatenation(generator):
    shape = list(some(generator, 3))
    axis = axis_of(generator, shape)
    shapes = []
    for size in some(generator, 3):
        shape[axis] = size
        shapes.append(tuple(shape))
    return lambda *xs: lax.concatenate(xs, axis), shapes


def parts(generator):
    shape = list(some(generator, 3))
    axis, sizes = axis_of(generator, shape), some(generator, 3)
    shape[axis] = sum(sizes)
    return lambda x: lax.split(x, sizes, axis), [tuple(shape)]


def slices(generator):
    shape = some(generator, 3, 7)
    start = [int(generator.integers(n)) for n in shape]
    limit = [
        int(generator.integers(s + 1, n + 1)) for s, n in zip(start, shape, strict=True)
    ]
    stride = [int(generator.integers(1, 3)) for _ in shape]
    return lambda x: lax.slice(x, start, limit, stride), [shape]


def padding(generator):
    shape = some(generator, 3)
    config = [tuple(int(n) for n in generator.integers(0, 2, 3)) for _ in shape]
    return lambda x: lax.pad(x, 0.0, config), [shape]


def dynamic_part(generator):
    shape = some(generator, 3, 6)
    sizes = [int(generator.choice([n, 1, n - 1])) for n in shape]
    return lambda x: lax.dynamic_slice(x, (0, 1, 0), sizes), [shape]


def tiles(generator):
    shape, reps = some(generator, 2), some(generator, 2, 4)
    return lambda x: jnp.tile(x, reps), [shape]


def order(generator):
    shape = some(generator, 3)
    axis = axis_of(generator, shape)
    return lambda x, y: lax.sort((x, y), dimension=axis, num_keys=1), [shape, shape]


def best(generator):
    shape = some(generator, 2, 6)
    k = int(generator.integers(1, shape[1] + 1))

    def fn(x, y):
        _, chosen = lax.top_k(x, k)
        return jnp.take_along_axis(y, chosen, axis=1)

    return fn, [shape, shape]


def one_hot(generator):
    shape = some(generator, 2, 6)

    def fn(x, kernels):
        chosen = jnp.argmax(x, axis=1)
        mask = (chosen[:, None] == jnp.arange(shape[1])[None]).astype(jnp.float32)
        return mask @ kernels

    return fn, [shape, (shape[1], 4)]


def reversal(generator):
    shape = some(generator, 3)
    axis = axis_of(generator, shape)
    return lambda x: lax.rev(x, (axis,)), [shape]


def transform(generator):
    shape = some(generator, 3)
    axis = axis_of(generator, shape)
    return lambda x: jnp.fft.fft(x, axis=axis).real, [shape]


def decomposition(generator):
    *batch, n = some(generator, 3, 4)
    fn = [
        lambda x: lax.linalg.cholesky(
            x @ jnp.matrix_transpose(x) + jnp.eye(n)[None, None]
        ),
        lambda x: lax.linalg.eigh(x),
        lambda x: lax.linalg.qr(x, full_matrices=False),
        lambda x: lax.linalg.lu(x),
    ][generator.integers(4)]
    return fn, [(*batch, n, n)]


def singular_values(generator):
    shape = some(generator, 4)
    vectors = bool(generator.integers(2))
    return lambda x: lax.linalg.svd(x, full_matrices=False, compute_uv=vectors), [shape]


def triangular_system(generator):
    *batch, n, sides = some(generator, 3)
    left = bool(generator.integers(2))
    shape = (n, sides) if left else (sides, n)

    def fn(x, y):
        return lax.linalg.triangular_solve(x, y, left_side=left, lower=True)

    return fn, [(*batch, n, n), (*batch, *shape)]


def linear_system(generator):
    *batch, n, sides = some(generator, int(generator.integers(2, 4)), 4)
    return jnp.linalg.solve, [(*batch, n, n), (*batch, n, sides)]


def pooled_gradient(generator):
    shape = (*some(generator, 3, 6), int(generator.integers(2, 5)))
    size = (1, *some(generator, 2, 4), 1)

    def pool(x):
        return lax.reduce_window(x, -np.inf, lax.max, size, size, "SAME")

    if generator.random() < 0.5:
        return jax.grad(lambda x: (pool(x) ** 2).sum()), [shape]
    return lambda x, y: jax.jvp(pool, (x,), (y,))[1], [shape, shape]


def gradient_of_a_sum(generator):
    shape = some(generator, 3)
    return jax.grad(lambda x: (jnp.sin(x) * x + x).sum()), [shape]


def nearly_best(generator):
    shape = some(generator, 3, 6)
    axis = axis_of(generator, shape)
    return lambda x: lax.approx_max_k(x, 2, reduction_dimension=axis), [shape]


def bits(generator):
    shape = some(generator, 2)
    dtype = [np.int8, np.int16, np.int32][generator.integers(3)]

    def fn(x):
        cut = lax.bitcast_convert_type(x, dtype)
        return cut, lax.bitcast_convert_type(cut + 1, np.float32)

    return fn, [shape]


def draws(generator):
    shape, drawn = some(generator, 2), some(generator, 2)

    def one(key, number):
        key = jax.random.fold_in(jax.random.split(key)[1], number)
        return jax.random.normal(key, drawn)

    def fn(x, y):
        made = (rule_cases.keys(x), rule_cases.unsigned(y))
        return jax.vmap(jax.vmap(one))(*made)

    return fn, [(*shape, 2), shape]


def composition(generator):
    shape = some(generator, 3)
    axis = axis_of(generator, shape)
    return lax.composite(lambda x: jnp.exp(x).sum(axis), name="rig.sum"), [shape]


def fused_attention(generator):
    batch, time, keys, heads, width, out = some(generator, 6)
    groups = int(generator.integers(1, 3))
    layout = ("BTNH", "BNTH")[generator.integers(2)]
    causal = bool(generator.integers(2))

    def shape(positions, heads, width):
        middle = (positions, heads) if layout == "BTNH" else (heads, positions)
        return (batch, *middle, width)

    bias = (1, groups * heads, 1, keys)
    fn = attending(mask=Mask.CAUSAL if causal else Mask.NO_MASK, layout=layout)
    shapes = [shape(time, groups * heads, width), shape(keys, heads, width)]
    return fn, [*shapes, shape(keys, heads, out), bias]


CASES = (
    elementwise, broadcast, transpose, reduction, cumulative, product, convolution,
    transposed_convolution, pooling, concatenation, parts, slices, padding,
    dynamic_part, tiles, order, best, one_hot, reversal, transform, decomposition,
    singular_values, triangular_system, linear_system, pooled_gradient,
    gradient_of_a_sum, nearly_best, bits, draws, composition, fused_attention,
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_rule_leaves_only_what_may_be_permuted(case, seed):
    fn, shapes = case(np.random.default_rng(seed))
    args = random_arrays(shapes)
    *seen, _ = walk(fn, args)
    check_law(fn, args, *seen)
