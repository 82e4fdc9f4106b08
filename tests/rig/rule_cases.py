"""What every rule must do, written by hand: one row a case, for `test_rules`.

A case is a function of one primitive, the shapes of its operands and what must become
of their axes: a letter is a label (equal letters are tied), a number a fixed axis,
`a*b` a product, `a+b` a concatenation and `{a|b}` something else at every position of a
fixed axis. A value that is a position along a label is written `@a`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from fused_attention import attending, Mask
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.random import threefry2x32_p
from jax.scipy import special

# What is left unknown (see `Primitive` for what follows from that) -> the primitives
# with a rule that do so. A new primitive has to be put in a row.
LEFT_OUT = {
    "positions lookups summed meets ranks entries arithmetic joins_columns": """
        abs acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
        clz complex conj cos cosh digamma erf erf_inv erfc exp exp2 expm1 floor ge gt
        igamma igammac imag integer_pow is_finite le lgamma log log1p log2 logistic min
        neg nextafter not one_minus_square or polygamma population_count pow
        random_clone random_fold_in random_seed real reduce_max reduce_min
        reduce_precision reduce_sum regularized_incomplete_beta rem round shift_left
        shift_right_arithmetic shift_right_logical sign sin sinh square tan tanh
        threefry2x32 xor zeta
    """,
    "positions lookups summed meets genericity ranks entries arithmetic "
    "joins_columns": """
        approx_top_k bitcast_convert_type cholesky cumlogsumexp cummax cummin cumprod
        cumsum eigh lu lu_pivots_to_permutation qr random_bits random_split
        random_unwrap reduce_and reduce_or reduce_prod reduce_xor svd triangular_solve
    """,
    "positions axis_map lookups summed meets genericity ranks entries arithmetic "
    "joins_columns": """
        dynamic_update_slice pmax pmin psum random_wrap reduce_window_max
        reduce_window_min reduce_window_sum select_and_gather_add select_and_scatter_add
    """,
    "positions lookups summed meets ranks entries joins_columns": """
        add_any clamp div max mul rsqrt sqrt sub
    """,
    "lookups summed meets ranks arithmetic joins_columns": """
        broadcast_in_dim convert_element_type copy reshape squeeze stop_gradient
        transpose
    """,
    "axis_map lookups summed genericity ranks entries arithmetic joins_columns": """
        scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub
    """,
    "positions axis_map lookups summed meets ranks entries arithmetic "
    "joins_columns": "device_put name stack unstack",
    "positions axis_map lookups summed genericity ranks entries arithmetic "
    "joins_columns": "dot_product_attention_fwd_wrapper pad tile",
    "positions lookups ranks entries arithmetic joins_columns": """
        conv_general_dilated dot_general
    """,
    "lookups summed ranks entries arithmetic joins_columns": "eq ne",
    "lookups summed meets ranks entries arithmetic joins_columns": "lt select_n",
    "positions axis_map lookups summed meets genericity ranks entries arithmetic "
    "joins_columns cost": "fft reduce_window",
    "axis_map lookups summed meets genericity entries arithmetic joins_columns": """
        argmax argmin
    """,
    "lookups summed meets genericity entries arithmetic joins_columns": "sort top_k",
    "positions axis_map lookups summed meets ranks arithmetic joins_columns": """
        rev sharding_constraint
    """,
    "positions genericity ranks entries arithmetic joins_columns": """
        ragged_dot_general
    """,
    "lookups summed meets ranks entries joins_columns": "add",
    "summed ranks entries arithmetic joins_columns": "gather",
    "axis_map lookups summed meets genericity ranks entries arithmetic "
    "joins_columns": "iota",
    "axis_map lookups summed meets ranks entries arithmetic joins_columns": """
        optimization_barrier
    """,
    "axis_map lookups summed ranks entries arithmetic": "concatenate",
    "axis_map lookups summed ranks arithmetic joins_columns": "slice",
    "axis_map lookups summed ranks entries arithmetic joins_columns": "split",
    "positions summed meets ranks arithmetic joins_columns": "dynamic_slice",
}


def conv(lhs, rhs, numbers, **options):
    strides = options.pop("strides", (1,) * (len(numbers[0]) - 2))
    padding = options.pop("padding", "SAME")
    return lax.conv_general_dilated(
        lhs, rhs, strides, padding, dimension_numbers=numbers, **options
    )


def dot(contracted, batch=((), ())):
    return lambda x, y: lax.dot_general(x, y, (contracted, batch))


def window(reducer, size, strides=None, padding="VALID", **dilation):
    init = {lax.add: 0.0, lax.max: -np.inf, lax.min: np.inf, lax.mul: 1.0}[reducer]
    strides = strides or (1,) * len(size)
    return lambda x: lax.reduce_window(
        x, init, reducer, size, strides, padding, **dilation
    )


def reduce(reducer, axes):
    return lambda x: reducer(x, axes)


def whole(x):
    """Positions among the first three made of floats."""
    return lax.convert_element_type(lax.abs(x) * 2.9, np.int32)


def unsigned(x):
    """Integers made of floats."""
    return lax.convert_element_type(lax.abs(x) * 1000, np.uint32)


def keys(x):
    """Keys of two words each."""
    return jax.random.wrap_key_data(unsigned(x), impl="threefry2x32")


def words(keys):
    return jax.random.key_data(keys)


def positive(x):
    """Positive definite matrices."""
    return jnp.einsum("bij,bkj->bik", x, x) + 3 * jnp.eye(x.shape[1])[None]


def rows(x, indices):
    """Whole rows of a matrix."""
    batch = tuple(range(indices.ndim - 1))
    numbers = lax.GatherDimensionNumbers((len(batch),), (0,), (0,))
    return lax.gather(x, indices, numbers, (1, x.shape[1]))


def picked(x, indices):
    """One entry of each row of a matrix."""
    numbers = lax.GatherDimensionNumbers((), (1,), (1,), (0,), (0,))
    return lax.gather(x, indices, numbers, (1, 1))


def over_devices(collective):
    """A collective over the first axis of a matrix."""
    return jax.vmap(lambda x: collective(x, "d"), axis_name="d", out_axes=None)


ROWS = lax.ScatterDimensionNumbers((1,), (0,), (0,))
ONE_DEVICE = jax.sharding.NamedSharding(
    jax.sharding.Mesh(np.array(jax.devices()[:1]), "d"), jax.sharding.PartitionSpec()
)
NHWC = ("NHWC", "HWIO", "NHWC")
CASES = {
    # broadcasting: an axis of size 1 beside a longer one
    "add size 1": (lambda x, y: x + y, [(3, 4), (1, 4)], "a b, 1 b -> a b"),
    "add both sizes 1": (lambda x, y: x + y, [(3, 1), (1, 4)], "a 1, 1 b -> a b"),
    "add rank 0": (lax.add, [(), ()], ",  -> "),
    "mul number": (lambda x: x * 2.0, [(3, 4)], "a b -> a b"),
    "clamp": (lambda x: lax.clamp(-0.5, x, 0.5), [(3, 4)], "a b -> a b"),
    "clamp by arrays": (lax.clamp, [(3,), (3,), (3,)], "a, a, a -> a"),
    "select": (
        lambda c, x, y: lax.select(c > 0, x, y),
        [(3, 2)] * 3,
        "a b, a b, a b -> a b",
    ),
    "broadcast new axes": (
        lambda x: lax.broadcast_in_dim(x, (2, 3, 5, 4), (1, 3)),
        [(3, 4)],
        "a b -> c a d b",
    ),
    "broadcast size 1": (
        lambda x: lax.broadcast_in_dim(x, (3, 4), (0, 1)),
        [(3, 1)],
        "a 1 -> a b",
    ),
    "broadcast rank 0": (lambda x: lax.broadcast_in_dim(x, (3,), ()), [()], " -> a"),
    # shape
    "reshape split": (lambda x: lax.reshape(x, (2, 3, 4)), [(6, 4)], "a*b c -> a b c"),
    "reshape merge": (lambda x: lax.reshape(x, (6, 4)), [(2, 3, 4)], "a b c -> a*b c"),
    "reshape all": (lambda x: lax.reshape(x, (24,)), [(2, 3, 4)], "a b c -> a*b*c"),
    "reshape transposed": (
        lambda x: lax.reshape(x, (8, 3), (2, 0, 1)),
        [(2, 3, 4)],
        "a b c -> c*a b",
    ),
    "reshape mixed": (lambda x: lax.reshape(x, (2, 12)), [(6, 4)], "a*b c -> a b*c"),
    "reshape two groups": (
        lambda x: lax.reshape(x, (6, 4, 5)),
        [(2, 3, 20)],
        "a b c*d -> a*b c d",
    ),
    "reshape unnested": (
        lambda x: lax.reshape(x, (3, 2)),
        [(2, 3)],
        "2 {a+1|1+b} -> 3 {a|2|b}",
    ),
    "reshape partly unnested": (
        lambda x: lax.reshape(x, (5, 3, 2)),
        [(5, 2, 3)],
        "a 2 {b+1|1+c} -> a 3 {b|2|c}",
    ),
    "reshape size 1": (
        lambda x: lax.reshape(x, (1, 3, 1, 4)),
        [(3, 1, 4, 1)],
        "a 1 b 1 -> 1 a 1 b",
    ),
    "reshape to rank 0": (lambda x: lax.reshape(x, ()), [(1, 1)], "1 1 -> "),
    "reshape empty": (lambda x: lax.reshape(x, (0, 3)), [(3, 0)], "3 0 -> 0 3"),
    "transpose": (
        lambda x: lax.transpose(x, (2, 0, 1)),
        [(2, 3, 4)],
        "a b c -> c a b",
    ),
    "squeeze": (lambda x: lax.squeeze(x, (0, 2)), [(1, 3, 1, 4)], "1 a 1 b -> a b"),
    "expand_dims": (lambda x: lax.expand_dims(x, (0, 2)), [(3, 4)], "a b -> 1 a 1 b"),
    # reductions
    "reduce_sum": (reduce(lax.reduce_sum, (1,)), [(3, 4, 5)], "a b c -> a c"),
    "reduce_max": (reduce(lax.reduce_max, (0, 2)), [(3, 4, 5)], "a b c -> b"),
    "reduce_min": (reduce(lax.reduce_min, (0,)), [(3, 4)], "a b -> b"),
    "reduce_prod": (reduce(lax.reduce_prod, (1,)), [(3, 4)], "a b -> a"),
    "reduce_and": (lambda x: lax.reduce_and(x > 0, (1,)), [(3, 4)], "a b -> a"),
    "reduce_or": (lambda x: lax.reduce_or(x > 1, (1,)), [(3, 4)], "a b -> a"),
    "reduce_xor": (lambda x: lax.reduce_xor(x > 0, (1,)), [(3, 4)], "a b -> a"),
    "reduce nothing": (reduce(lax.reduce_sum, ()), [(3, 4)], "a b -> a b"),
    "argmax": (lambda x: lax.argmax(x, 1, np.int32), [(3, 4)], "a b -> a @b"),
    "argmin": (lambda x: lax.argmin(x, 0, np.int32), [(3, 4)], "a b -> b @a"),
    "cumsum": (lambda x: lax.cumsum(x, 1), [(3, 4)], "a 4 -> a 4"),
    "cumsum reverse": (
        lambda x: lax.cumsum(x, 0, reverse=True),
        [(3, 4)],
        "3 a -> 3 a",
    ),
    "cumprod": (lambda x: lax.cumprod(x, 0), [(3, 4)], "3 a -> 3 a"),
    "cummax": (lambda x: lax.cummax(x, 0), [(3, 4)], "3 a -> 3 a"),
    "cummin": (lambda x: lax.cummin(x, 0), [(3, 4)], "3 a -> 3 a"),
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x, 1), [(3, 4)], "a 4 -> a 4"),
    # contractions
    "matmul": (dot(((1,), (0,))), [(3, 4), (4, 5)], "a b, b c -> a c"),
    "dot of vectors": (dot(((0,), (0,))), [(4,), (4,)], "a, a -> "),
    "outer": (dot(((), ())), [(3,), (4,)], "a, b -> a b"),
    "dot over two axes": (
        dot(((0, 2), (2, 1))),
        [(3, 4, 5), (6, 5, 3)],
        "a b c, d c a -> b d",
    ),
    "dot with batch": (
        dot(((2,), (1,)), ((0,), (0,))),
        [(2, 3, 4), (2, 4, 5)],
        "a b c, a c d -> a b d",
    ),
    "dot with two batch axes": (
        dot(((1,), (3,)), ((3, 0), (0, 2))),
        [(2, 5, 4, 3), (3, 7, 2, 5)],
        "a b c d, d e a b -> d a c e",
    ),
    "gram": (lambda x: dot(((0,), (0,)))(x, x), [(5, 3)], "a b -> b b"),
    "dot with itself": (lambda x: dot(((0,), (1,)))(x, x), [(4, 4)], "a a -> a a"),
    # convolutions
    "conv 1d": (
        lambda x, w: conv(x, w, ("NWC", "WIO", "NWC")),
        [(2, 6, 3), (3, 3, 4)],
        "a 6 b, 3 b c -> a 6 c",
    ),
    "conv 2d": (
        lambda x, w: conv(x, w, NHWC),
        [(2, 5, 4, 3), (3, 3, 3, 6)],
        "a 5 4 b, 3 3 b c -> a 5 4 c",
    ),
    "conv channels first": (
        lambda x, w: conv(x, w, ("NCHW", "OIHW", "NCHW")),
        [(2, 3, 5, 4), (6, 3, 3, 3)],
        "a b 5 4, c b 3 3 -> a c 5 4",
    ),
    "conv 3d": (
        lambda x, w: conv(x, w, ("NDHWC", "DHWIO", "NDHWC")),
        [(2, 3, 3, 3, 3), (2, 2, 2, 3, 4)],
        "a 3 3 3 b, 2 2 2 b c -> a 3 3 3 c",
    ),
    "conv 1x1": (
        lambda x, w: conv(x, w, NHWC),
        [(2, 4, 4, 3), (1, 1, 3, 5)],
        "a 4 4 b, 1 1 b c -> a 4 4 c",
    ),
    "conv strided": (
        lambda x, w: conv(x, w, NHWC, strides=(2, 2)),
        [(2, 5, 4, 3), (3, 3, 3, 6)],
        "a 5 4 b, 3 3 b c -> a 3 2 c",
    ),
    "conv dilated": (
        lambda x, w: conv(x, w, NHWC, rhs_dilation=(2, 2)),
        [(2, 6, 6, 3), (2, 2, 3, 4)],
        "a 6 6 b, 2 2 b c -> a 6 6 c",
    ),
    "conv transposed": (
        lambda x, w: lax.conv_transpose(x, w, (2, 2), "SAME"),
        [(2, 3, 3, 4), (3, 3, 4, 5)],
        "a 3 3 b, 3 3 b c -> a 6 6 c",
    ),
    "conv grouped": (
        lambda x, w: conv(x, w, NHWC, feature_group_count=2),
        [(2, 4, 4, 6), (3, 3, 3, 8)],
        "a 4 4 b*c, 3 3 c b*d -> a 4 4 b*d",
    ),
    "conv depthwise": (
        lambda x, w: conv(x, w, NHWC, feature_group_count=6),
        [(2, 4, 4, 6), (3, 3, 1, 6)],
        "a 4 4 b, 3 3 1 b -> a 4 4 b",
    ),
    "conv depthwise multiplied": (
        lambda x, w: conv(x, w, NHWC, feature_group_count=3),
        [(2, 4, 4, 3), (3, 3, 1, 6)],
        "a 4 4 b, 3 3 1 b*c -> a 4 4 b*c",
    ),
    "conv batch groups": (
        lambda x, w: conv(x, w, NHWC, batch_group_count=2),
        [(4, 3, 3, 3), (3, 3, 3, 6)],
        "4 3 3 3, 3 3 3 6 -> 2 3 3 6",
    ),
    # concatenations
    "concatenate": (
        lambda x, y: lax.concatenate([x, y], 1),
        [(3, 4), (3, 2)],
        "a b, a c -> a b+c",
    ),
    "concatenate with itself": (
        lambda x: lax.concatenate([x, x], 1),
        [(3, 4)],
        "a b -> a b+b",
    ),
    "concatenate single positions": (
        lambda x, y: lax.concatenate([x, y], 0),
        [(1, 4), (1, 4)],
        "1 a, 1 b -> 2 {a|b}",
    ),
    "split": (lambda x: lax.split(x, (2, 3), 1), [(4, 5)], "a b+c -> a b, a c"),
    "slice": (lambda x: lax.slice(x, (0, 2), (3, 5)), [(3, 7)], "a b+c+d -> a c"),
    "slice front": (lambda x: lax.slice(x, (0,), (3,)), [(5,)], "a+b -> a"),
    "slice all": (lambda x: lax.slice(x, (0, 0), (3, 5)), [(3, 5)], "a b -> a b"),
    "slice one": (lambda x: lax.slice(x, (2,), (3,)), [(5,)], "5 -> 1"),
    "slice strided": (
        lambda x: lax.slice(x, (0, 1), (3, 7), (1, 2)),
        [(3, 7)],
        "a 7 -> a 3",
    ),
    "every second": (
        lambda x: lax.slice(x, (0, 1), (3, 6), (1, 2)),
        [(3, 6)],
        "{a|b} {c|d}*2 -> b d",
    ),
    "pad": (
        lambda x: lax.pad(x, 0.0, ((2, 3, 0), (0, 0, 0))),
        [(4, 5)],
        "a b -> c+a+d b",
    ),
    "pad interior": (
        lambda x: lax.pad(x, 0.0, ((0, 0, 1), (0, 0, 0))),
        [(3, 4)],
        "3 a -> 5 a",
    ),
    "pad negative": (
        lambda x: lax.pad(x, 0.0, ((-1, 0, 0), (0, 0, 0))),
        [(4, 3)],
        "4 a -> 3 a",
    ),
    "pad to the same size": (
        lambda x: lax.pad(x, 0.0, ((-1, 1, 0), (0, 0, 0))),
        [(4, 3)],
        "4 a -> 4 a",
    ),
    # windows
    "reduce_window max": (
        window(lax.max, (1, 2, 2, 1), (1, 2, 2, 1)),
        [(2, 4, 4, 3)],
        "a 4 4 b -> a 2 2 b",
    ),
    "reduce_window min": (window(lax.min, (1, 2)), [(3, 4)], "a 4 -> a 3"),
    "reduce_window sum": (
        window(lax.add, (1, 3), padding="SAME"),
        [(3, 5)],
        "a 5 -> a 5",
    ),
    "reduce_window product": (window(lax.mul, (2, 1)), [(4, 3)], "4 a -> 3 a"),
    "reduce_window strided by one": (
        window(lax.max, (1, 1), (2, 1)),
        [(4, 3)],
        "4 a -> 2 a",
    ),
    "reduce_window strided to the same size": (
        window(lax.max, (1, 1), (2, 1), ((0, 3), (0, 0))),
        [(4, 3)],
        "4 a -> 4 a",
    ),
    "reduce_window of padding": (
        window(lax.max, (1, 1), padding=((1, 0), (0, 0))),
        [(4, 3)],
        "4 a -> 5 a",
    ),
    "reduce_window of dilated input": (
        window(lax.add, (1, 1), base_dilation=(2, 1)),
        [(4, 3)],
        "4 a -> 7 a",
    ),
    "reduce_window of two operands": (
        lambda x, y: lax.reduce_window(
            (x, y),
            (1.0, 0.0),
            lambda a, b: (a[0] * b[0], a[1] + b[1]),
            (2, 1),
            (1, 1),
            "VALID",
        ),
        [(4, 3), (4, 3)],
        "4 a, 4 a -> 3 a, 3 a",
    ),
    # no operands
    "iota": (lambda: lax.broadcasted_iota(np.int32, (3, 4), 1), [], " -> b a @a"),
    "optimization_barrier": (
        lambda x, y: lax.optimization_barrier((x, y)),
        [(3, 4), (5,)],
        "a b, c -> a b, c",
    ),
    "device_put": (jax.device_put, [(3, 4)], "a b -> a b"),
    "sharding_constraint": (
        lambda x: lax.with_sharding_constraint(x, ONE_DEVICE),
        [(3, 4)],
        "a b -> a b",
    ),
    # taken or written by position
    "rev": (lambda x: lax.rev(x, (1,)), [(3, 4)], "a 4 -> a 4"),
    "fft": (
        lambda x: jnp.abs(lax.fft(x.astype(np.complex64), "FFT", (4,))),
        [(3, 4)],
        "a 4 -> a 4",
    ),
    "tile": (lambda x: lax.tile(x, (2, 3)), [(3, 4)], "a b -> c*a d*b"),
    "dynamic_slice": (
        lambda x, i: lax.dynamic_slice(x, (whole(i), 0), (2, 4)),
        [(3, 4), ()],
        "3 a,  -> 2 a",
    ),
    "dynamic_update_slice": (
        lambda x, u, i: lax.dynamic_update_slice(x, u, (whole(i), 0)),
        [(3, 4), (2, 4), ()],
        "3 a, 2 a,  -> 3 a",
    ),
    "gather rows": (
        lambda x, i: rows(x, whole(i)),
        [(4, 3), (5, 1)],
        "4 a, b 1 -> b a",
    ),
    **{
        name: (
            lambda x, i, u, fn=fn: fn(x, whole(i), u, ROWS),
            [(4, 3), (5, 1), (5, 3)],
            "4 a, b 1, b a -> 4 a",
        )
        for name, fn in {
            "scatter_add": lax.scatter_add,
            "scatter_sub": lax.scatter_sub,
            "scatter_mul": lax.scatter_mul,
            "scatter_min": lax.scatter_min,
            "scatter_max": lax.scatter_max,
        }.items()
    },
    "scatter": (
        lambda x, i, u: lax.scatter(x, whole(i), u, ROWS),
        [(4, 3), (5, 1), (5, 3)],
        "4 a, 5 1, 5 a -> 4 a",
    ),
    "scatter to different rows": (
        lambda x, i, u: lax.scatter(
            x, lax.iota(np.int32, 2)[:, None] + whole(i), u, ROWS, unique_indices=True
        ),
        [(4, 3), (2, 1), (2, 3)],
        "4 a, 2 1, 2 a -> 4 a",
    ),
    # positions that only pick from axes of the same units
    "one-hot of argmax": (
        lambda x: lax.eq(
            lax.broadcasted_iota(np.int32, (3, 4), 1),
            lax.broadcast_in_dim(lax.argmax(x, 1, np.int32), (3, 4), (0,)),
        ),
        [(3, 4)],
        "a b -> a b",
    ),
    "gather by argmax": (
        lambda x: picked(x, lax.argmax(x, 1, np.int32)[:, None]),
        [(3, 4)],
        "a b -> a",
    ),
    "gather rows by top_k": (
        lambda x, y: rows(y, lax.top_k(x, 2)[1][..., None]),
        [(3, 4), (4, 5)],
        "a b, b c -> a 2 c",
    ),
    "gather rows of another length": (
        lambda x, y: rows(y, lax.argmax(x, 1, np.int32)[:, None]),
        [(3, 4), (5, 2)],
        "a 4, 5 b -> a b",
    ),
    "scatter_add by argmax": (
        lambda x, y, u: lax.scatter_add(
            y, lax.argmax(x, 1, np.int32)[:, None], u, ROWS
        ),
        [(3, 4), (4, 5), (3, 5)],
        "a b, b c, a c -> b c",
    ),
    "argmax compared with itself": (
        lambda x: lax.ne(lax.argmax(x, 1, np.int32), lax.argmin(x, 1, np.int32)),
        [(3, 4)],
        "a b -> a",
    ),
    "argmax of one of two": (
        lambda x, y: lax.select(
            lax.gt(x[:, 0], y[:, 0]),
            lax.argmax(x, 1, np.int32),
            lax.argmax(y, 1, np.int32),
        ),
        [(3, 4), (3, 4)],
        "a 4, a 4 -> a",
    ),
    "argmax of argmax": (
        lambda x: lax.argmax(lax.argmax(x, 1, np.int32), 0, np.int32),
        [(3, 4)],
        "3 4 -> @3",
    ),
    "argmax in arithmetic": (
        lambda x: lax.argmax(x, 1, np.int32) * 2,
        [(3, 4)],
        "a 4 -> a",
    ),
    "argmax compared with a number": (
        lambda x: lax.eq(lax.argmax(x, 1, np.int32), 2),
        [(3, 4)],
        "a 4 -> a",
    ),
    "sort": (lambda x: lax.sort(x, dimension=1), [(3, 4)], "a b -> a 4"),
    "sort by a key": (
        lambda x, y: lax.sort((x, y), dimension=1, num_keys=1),
        [(3, 4), (3, 4)],
        "a b, a b -> a 4, a 4",
    ),
    "argsort": (
        lambda x: lax.sort(
            (x, lax.broadcasted_iota(np.int32, (3, 4), 1)), dimension=1, num_keys=1
        ),
        [(3, 4)],
        "a b -> a 4, a 4 @b",
    ),
    "top_k": (lambda x: lax.top_k(x, 2), [(3, 4)], "a b -> a 2, a 2 @b"),
    # positions told apart
    "take one of a stack": (
        lambda x: lax.slice(x, (1, 0), (2, 4)),
        [(3, 4)],
        "3 {a|b|c} -> 1 b",
    ),
    "unstack": (lambda x: lax.unstack(x), [(2, 4)], "2 {a|b} -> a, b"),
    "take two of a stack": (
        lambda x: (lax.slice(x, (0, 0), (1, 4)), lax.slice(x, (1, 0), (3, 4))),
        [(3, 4)],
        "3 {a|b|c} -> 1 a, 2 {b|c}",
    ),
    "swap two of a stack": (
        lambda x: lax.concatenate(
            [lax.slice(x, (1, 0), (2, 4)), lax.slice(x, (0, 0), (1, 4))], 0
        ),
        [(2, 4)],
        "2 {a|b} -> 2 {b|a}",
    ),
    "sum over a stack": (
        lambda x: (lax.slice(x, (1, 0), (2, 4)), lax.reduce_sum(x, (0,))),
        [(3, 4)],
        "3 a -> 1 a, a",
    ),
    "flatten a stack": (
        lambda x: (lax.slice(x, (1, 0), (2, 4)), lax.reshape(x, (12,))),
        [(3, 4)],
        "3 {a|b|c} -> 1 b, 3*{a|b|c}",
    ),
    "split what is a stack": (
        lambda x: (lax.split(x, (4, 4, 4), 0), lax.reshape(x, (3, 4))),
        [(12,)],
        "a+b+c -> a, b, c, 3 {a|b|c}",
    ),
    "stack": (
        lambda x, y: jnp.stack([x, y], axis=1),
        [(3, 4), (3, 4)],
        "a b, c d -> {a|c} 2 {b|d}",
    ),
    # an axis that `vmap` made of devices
    "psum": (over_devices(lax.psum), [(3, 4)], "a b -> b"),
    "pmax": (over_devices(lax.pmax), [(3, 4)], "a b -> b"),
    "pmin": (over_devices(lax.pmin), [(3, 4)], "a b -> b"),
    # what only names a value
    "name": (lambda x: checkpoint_name(x, "hidden"), [(3, 4)], "a b -> a b"),
    # runs of rows, one kernel each
    "ragged dot": (
        lambda x, y: lax.ragged_dot(x, y, np.array([2, 3], np.int32)),
        [(5, 3), (2, 3, 4)],
        "5 a, 2 a b -> 5 b",
    ),
    # linear algebra: what it is mapped over stays free
    "cholesky": (
        lambda x: lax.linalg.cholesky(positive(x), symmetrize_input=False),
        [(2, 4, 3)],
        "a 4 b -> a 4 4",
    ),
    "eigh": (
        lambda x: lax.linalg.eigh(x, symmetrize_input=False),
        [(2, 3, 3)],
        "a 3 3 -> a 3 3, a 3",
    ),
    "lu": (lax.linalg.lu, [(2, 3, 3)], "a 3 3 -> a 3 3, a 3, a 3"),
    "lu_pivots_to_permutation": (
        lambda x: lax.linalg.lu_pivots_to_permutation(whole(x), 4),
        [(2, 3)],
        "a 3 -> a 4",
    ),
    "qr": (
        lambda x: lax.linalg.qr(x, full_matrices=False),
        [(2, 4, 3)],
        "a 4 3 -> a 4 3, a 3 3",
    ),
    "qr pivoted": (
        lambda x: lax.linalg.qr(x, full_matrices=False, pivoting=True),
        [(2, 4, 3)],
        "a 4 3 -> a 4 3, a 3 3, a 3",
    ),
    "svd": (
        lambda x: lax.linalg.svd(x, full_matrices=False),
        [(2, 4, 3)],
        "a 4 3 -> a 4 3, a 3, a 3 3",
    ),
    "singular values": (
        lambda x: lax.linalg.svd(x, compute_uv=False),
        [(2, 4, 3)],
        "a b c -> a 3",
    ),
    "triangular_solve": (
        lambda x, y: lax.linalg.triangular_solve(x, y, left_side=True, lower=True),
        [(2, 3, 3), (2, 3, 4)],
        "a 3 3, a 3 b -> a 3 b",
    ),
    "triangular_solve from the right": (
        lax.linalg.triangular_solve,
        [(2, 3, 3), (2, 4, 3)],
        "a 3 3, a b 3 -> a b 3",
    ),
    "custom_linear_solve": (
        jnp.linalg.solve,
        [(3, 3), (3, 4)],
        "3 3, 3 a -> 3 a",
    ),
    "custom_linear_solve of several": (
        jnp.linalg.solve,
        [(2, 3, 3), (2, 3, 4)],
        "a 3 3, a 3 b -> a 3 b",
    ),
    # derivatives of pooling
    "select_and_scatter_add": (
        jax.grad(lambda x: window(lax.max, (1, 2), (1, 2))(x).sum()),
        [(3, 6)],
        "a 6 -> a 6",
    ),
    "select_and_gather_add": (
        lambda x, y: jax.jvp(window(lax.max, (1, 2), (1, 2)), (x,), (y,))[1],
        [(3, 6), (3, 6)],
        "a 6, a 6 -> a 3",
    ),
    # which of the largest are found depends on where they are
    "approx_top_k": (lambda x: lax.approx_max_k(x, 2), [(3, 4)], "a 4 -> a 2, a 2"),
    "approx_top_k along the first axis": (
        lambda x: lax.approx_max_k(x, 2, reduction_dimension=0),
        [(4, 3)],
        "4 a -> 2 a, 2 a",
    ),
    # the bits of a number
    "bitcast_convert_type": (
        lambda x: lax.bitcast_convert_type(x, np.int32),
        [(3, 4)],
        "a b -> a b",
    ),
    "bitcast_convert_type to parts": (
        lambda x: lax.bitcast_convert_type(x, np.int16),
        [(3, 4)],
        "a b -> a b 2",
    ),
    "bitcast_convert_type of parts": (
        lambda x: lax.bitcast_convert_type(x.astype(np.float16), np.int32),
        [(3, 2)],
        "a 2 -> a",
    ),
    # what only has a name for a program
    "composite": (
        lax.composite(lambda x: jnp.tanh(x).sum(0), name="rig.sum"),
        [(3, 4)],
        "a b -> b",
    ),
    # random numbers: each key draws by itself
    "random_bits": (
        lambda x: jax.vmap(lambda key: jax.random.bits(key, (3,)))(keys(x)),
        [(4, 2)],
        "a 2 -> a 3",
    ),
    "random_split": (
        lambda x: words(jax.vmap(lambda key: jax.random.split(key, 3))(keys(x))),
        [(4, 2)],
        "a 2 -> a 3 2",
    ),
    "random_fold_in": (
        lambda x, y: words(jax.vmap(jax.random.fold_in)(keys(x), whole(y))),
        [(4, 2), (4,)],
        "a 2, a -> a 2",
    ),
    "random_seed": (
        lambda x: words(jax.vmap(jax.random.key)(whole(x))),
        [(4,)],
        "a -> a 2",
    ),
    "random_clone": (
        lambda x: words(jax.random.clone(keys(x))),
        [(4, 2)],
        "a 2 -> a 2",
    ),
    "threefry2x32": (
        lambda *xs: threefry2x32_p.bind(*map(unsigned, xs)),
        [(3, 4)] * 4,
        "a b, a b, a b, a b -> a b, a b",
    ),
    # attention of GPUs
    "attention": (
        attending(),
        [(2, 5, 3, 4), (2, 6, 3, 4), (2, 6, 3, 7)],
        "a b c d, a e c d, a e c f -> a b c f",
    ),
    "attention, heads first": (
        attending(layout="BNTH", training=True),
        [(2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 4)],
        "a b c d, a b e d, a b e f -> a b c f, a b c",
    ),
    "attention of groups of heads": (
        attending(),
        [(2, 5, 6, 4), (2, 7, 3, 4), (2, 7, 3, 4)],
        "a b c*d e, a f c e, a f c g -> a b c*d g",
    ),
    "attention, causal": (
        attending(mask=Mask.CAUSAL),
        [(2, 5, 3, 4), (2, 5, 3, 4), (2, 5, 3, 4)],
        "a 5 b c, a 5 b c, a 5 b d -> a 5 b d",
    ),
    "attention with a bias": (
        attending(),
        [(2, 5, 3, 4), (2, 6, 3, 4), (2, 6, 3, 4), (1, 3, 5, 6)],
        "a b c d, a e c d, a e c f, 1 c b e -> a b c f",
    ),
    "attention by slopes": (
        attending(mask=Mask.ALIBI),
        [(2, 5, 3, 4)] * 3,
        "2 5 3 4, 2 5 3 4, 2 5 3 4 -> 2 5 3 4",
    ),
    # no rule
    "reduce of two": (
        lambda x, y: lax.reduce((x, y), (0.0, 0.0), lambda a, b: a, (1,)),
        [(3, 4), (3, 4)],
        "3 4, 3 4 -> 3, 3",
    ),
}


UNARY = """
abs acos asin asinh atan atanh bessel_i0e bessel_i1e cbrt ceil cos cosh digamma erf
erf_inv erfc exp exp2 expm1 floor is_finite lgamma log log1p logistic neg round rsqrt
sign sin sinh sqrt square stop_gradient tan tanh
""".split()
BINARY = """
add atan2 div eq ge gt igamma igammac le lt max min mul ne nextafter pow rem sub
""".split()
BITWISE = "and or xor".split()
SHIFTS = "shift_left shift_right_arithmetic shift_right_logical".split()


def integers(fn):
    """A function of integers made of the given floats."""
    return lambda *args: fn(*((10 * x).astype(np.int32) for x in args))


ELEMENTWISE = {
    **{name: (getattr(lax, name), 1) for name in UNARY},
    **{name: (getattr(lax, name), 2) for name in BINARY},
    **{name: (integers(getattr(lax, f"bitwise_{name}")), 2) for name in BITWISE},
    **{name: (integers(getattr(lax, name)), 2) for name in SHIFTS},
    **{
        name: (getattr(lax, name), 1)
        for name in ("log2", "one_minus_square")
        if hasattr(lax, name)
    },
    "add_any": (jax.grad(lambda x: (x * x + lax.sin(x)).sum()), 1),
    "clz": (integers(lax.clz), 1),
    "not": (integers(lax.bitwise_not), 1),
    "population_count": (integers(lax.population_count), 1),
    "acosh": (lambda x: lax.acosh(1 + x), 1),
    "integer_pow": (lambda x: lax.integer_pow(x, 3), 1),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 8, 4), 1),
    "convert_element_type": (lambda x: lax.convert_element_type(x, np.float16), 1),
    "copy": (lambda x: jnp.array(x, copy=True), 1),
    "complex": (lambda x, y: jnp.abs(lax.complex(x, y)), 2),
    "polygamma": (lax.polygamma, 2),
    "zeta": (lambda x, y: lax.zeta(1 + x, y), 2),
    "regularized_incomplete_beta": (special.betainc, 3),
    "real": (lambda x: lax.real(x * 1j), 1),
    "imag": (lambda x: lax.imag(x * 1j), 1),
    "conj": (lambda x: jnp.abs(lax.conj(x * 1j)), 1),
    "clamp": (lambda x: lax.clamp(0.3, x, 0.6), 1),
    "select_n": (lambda x, y: lax.select_n(x > y, x, y), 2),
}
