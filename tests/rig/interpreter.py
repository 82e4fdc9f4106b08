"""Evaluate a program with numpy in double precision: slow to run, nothing to compile.

Written from what the primitives are documented to do, for those that `programs` makes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jmudsc.derivation.program import open_jaxpr, scan_operands


def evaluate(program, args):
    """The outputs of a traced program."""
    values = dict(program.consts) | dict(zip(program.invars, args, strict=True))
    return _run(program.eqns, values, program.outvars)


def _inside(jaxpr, args):
    body = open_jaxpr(jaxpr)
    values = dict(zip(body.constvars, getattr(jaxpr, "consts", ()), strict=True))
    values |= dict(zip(body.invars, args, strict=True))
    return _run(body.eqns, values, body.outvars)


def _run(eqns, values, wanted):
    def read(var):
        return np.asarray(var.val if hasattr(var, "val") else values[var])

    for eqn in eqns:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            outs = PRIMITIVES[eqn.primitive.name](eqn, *map(read, eqn.invars))
        outs = outs if eqn.primitive.multiple_results else [outs]
        for var, out in zip(eqn.outvars, outs, strict=True):
            assert np.shape(out) == var.aval.shape, eqn
            values[var] = in_type(np.asarray(out), var.aval.dtype)
    return [read(var) for var in wanted]


def in_type(x, dtype):
    """Round to what a type can hold; floats of 32 bits are computed in 64."""
    with np.errstate(all="ignore"):
        if jnp.issubdtype(dtype, jnp.floating):
            is_narrow = jnp.finfo(dtype).nmant < 23
            return np.asarray(x.astype(dtype) if is_narrow else x, np.float64)
        if jnp.issubdtype(dtype, jnp.integer):
            return x.astype(np.int64).astype(dtype).astype(np.int64)
        return x.astype(bool) if np.dtype(dtype).kind == "b" else x


def scan(eqn, *ins):
    consts, carried = scan_operands(eqn)
    end = consts + carried
    carry, rows = ins[consts:end], range(eqn.params["length"])
    found = {}
    for row in reversed(rows) if eqn.params["reverse"] else rows:
        steps = [x[row] for x in ins[end:]]
        outs = _inside(eqn.params["jaxpr"], [*ins[:consts], *carry, *steps])
        carry, found[row] = outs[:carried], outs[carried:]
    stacked = zip(*(found[row] for row in rows), strict=True)
    return [*carry, *map(np.stack, stacked)]


def while_(eqn, *ins):
    tests = eqn.params["cond_nconsts"]
    start = tests + eqn.params["body_nconsts"]
    carry = ins[start:]
    while _inside(eqn.params["cond_jaxpr"], [*ins[:tests], *carry])[0]:
        carry = _inside(eqn.params["body_jaxpr"], [*ins[tests:start], *carry])
    return carry


def cond(eqn, which, *ins):
    branches = eqn.params["branches"]
    return _inside(branches[int(np.clip(which, 0, len(branches) - 1))], ins)


def broadcast_in_dim(eqn, x):
    shape, kept = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    wide = np.ones(len(shape), int)
    wide[list(kept)] = x.shape
    return np.broadcast_to(x.reshape(wide), shape)


def dot_general(eqn, a, b):
    (sum_a, sum_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    names_a = list(range(a.ndim))
    names_b = list(range(a.ndim, a.ndim + b.ndim))
    for i, j in zip((*sum_a, *batch_a), (*sum_b, *batch_b), strict=True):
        names_b[j] = names_a[i]
    out = [names_a[i] for i in batch_a]
    out += [n for i, n in enumerate(names_a) if i not in (*sum_a, *batch_a)]
    out += [n for j, n in enumerate(names_b) if j not in (*sum_b, *batch_b)]
    return np.einsum(a, names_a, b, names_b, out)


def convolution(eqn, x, kernel):
    """In one dimension, with stride 1 and no dilation."""
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    x, kernel = x.transpose(numbers.lhs_spec), kernel.transpose(numbers.rhs_spec)
    x = np.pad(x, ((0, 0), (0, 0), *eqn.params["padding"]))
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2], axis=2)
    xs, kernels = (np.split(y, groups, axis=i) for y, i in ((windows, 1), (kernel, 0)))
    pairs = zip(xs, kernels, strict=True)
    out = [np.einsum("nctw,ocw->not", y, k) for y, k in pairs]
    return np.concatenate(out, axis=1).transpose(np.argsort(numbers.out_spec))


def slice_(eqn, x):
    names = ("start_indices", "limit_indices", "strides")
    starts, ends, steps = (eqn.params[name] for name in names)
    bounds = zip(starts, ends, steps or (1,) * x.ndim, strict=True)
    return x[tuple(slice(*bound) for bound in bounds)]


def _window(starts, sizes, shape):
    """Where a window is, moved inside."""
    return tuple(
        slice(start, start + size)
        for start, size in (
            (int(np.clip(start, 0, whole - size)), size)
            for start, size, whole in zip(starts, sizes, shape, strict=True)
        )
    )


def dynamic_slice(eqn, x, *starts):
    return x[_window(starts, eqn.params["slice_sizes"], x.shape)]


def dynamic_update_slice(eqn, x, new, *starts):
    out = x.copy()
    out[_window(starts, new.shape, x.shape)] = new
    return out


def pad(eqn, x, value):
    config = eqn.params["padding_config"]
    for axis, (*_, inner) in enumerate(config):
        if inner and x.shape[axis]:
            gaps = np.repeat(np.arange(1, x.shape[axis]), inner)
            x = np.insert(x, gaps, value, axis)
    wide = [(max(low, 0), max(high, 0)) for low, high, _ in config]
    x = np.pad(x, wide, constant_values=value)
    cut = (
        slice(max(-low, 0), n - max(-high, 0))
        for n, (low, high, _) in zip(x.shape, config, strict=True)
    )
    return x[tuple(cut)]


def _starts(place, indices, axes, rank, batching):
    starts = [0] * rank
    for column, axis in enumerate(axes):
        starts[axis] = int(indices[(*place, column)])
    for axis, number in batching:
        starts[axis] = place[number]
    return starts


def _at(place, window, rank):
    """Index of all of the window axes at one place of the others."""
    rest = iter(place)
    return tuple(slice(None) if i in window else next(rest) for i in range(rank))


def gather(eqn, x, indices):
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    out = np.zeros(eqn.outvars[0].aval.shape, x.dtype)
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    batching = list(
        zip(
            numbers.operand_batching_dims,
            numbers.start_indices_batching_dims,
            strict=True,
        )
    )
    for place in np.ndindex(indices.shape[:-1]):
        starts = _starts(place, indices, numbers.start_index_map, x.ndim, batching)
        window = _window(starts, sizes, x.shape)
        is_inside = all(w.start == s for w, s in zip(window, starts, strict=True))
        if is_inside or "FILL" not in str(eqn.params["mode"]):
            part = x[window].squeeze(tuple(map(int, gone)))
            out[_at(place, numbers.offset_dims, out.ndim)] = part
    return out


def scatter(eqn, x, indices, updates):
    numbers = eqn.params["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(x.ndim) if axis not in gone]
    batching = list(
        zip(
            numbers.operand_batching_dims,
            numbers.scatter_indices_batching_dims,
            strict=True,
        )
    )
    out = x.copy()
    for place in np.ndindex(indices.shape[:-1]):
        part = updates[_at(place, numbers.update_window_dims, updates.ndim)]
        sizes = np.ones(x.ndim, int)
        sizes[kept] = part.shape
        axes = numbers.scatter_dims_to_operand_dims
        starts = _starts(place, indices, axes, x.ndim, batching)
        window = _window(starts, sizes, x.shape)
        if all(w.start == s for w, s in zip(window, starts, strict=True)):
            part = part.reshape(sizes)
            is_sum = eqn.primitive.name == "scatter-add"
            out[window] = out[window] + part if is_sum else part
    return out


def reduce_window_sum(eqn, x, *_):
    x = np.pad(x, eqn.params["padding"])
    shape = eqn.params["window_dimensions"]
    windows = np.lib.stride_tricks.sliding_window_view(x, shape)
    return windows.sum(axis=tuple(range(x.ndim, 2 * x.ndim)))


def sort(eqn, *ins):
    along, keys = eqn.params["dimension"], eqn.params["num_keys"]
    order = np.lexsort(ins[:keys][::-1], axis=along)
    return [np.take_along_axis(x, order, along) for x in ins]


def top_k(eqn, x):
    along = eqn.params.get("axis", x.ndim - 1)
    order = np.argsort(-x, axis=along, kind="stable")
    order = order.take(range(eqn.params["k"]), axis=along)
    return [np.take_along_axis(x, order, along), order]


def iota(eqn):
    along, shape = eqn.params["dimension"], eqn.params["shape"]
    wide = [-1 if axis == along else 1 for axis in range(len(shape))]
    return np.broadcast_to(np.arange(shape[along]).reshape(wide), shape)


def cumsum(eqn, x):
    step = -1 if eqn.params["reverse"] else 1
    along = eqn.params["axis"]
    flip = [slice(None, None, step if axis == along else 1) for axis in range(x.ndim)]
    return np.cumsum(x[tuple(flip)], axis=along)[tuple(flip)]


def select_n(eqn, which, *cases):
    return np.choose(np.broadcast_to(which, cases[0].shape).astype(int), cases)


def convert(eqn, x):
    is_flag = np.dtype(eqn.params["new_dtype"]).kind == "b"
    return x != 0 if is_flag else x.astype(np.float64) if x.dtype.kind == "b" else x


def rounded(eqn, x):
    is_even = eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN
    return np.round(x) if is_even else np.trunc(x + np.copysign(0.5, x))


def reduce_precision(eqn, x):
    fraction, power = np.frexp(x)
    scale = 2.0 ** (eqn.params["mantissa_bits"] + 1)
    return np.ldexp(np.round(fraction * scale) / scale, power)


def reshape(eqn, x):
    order = eqn.params["dimensions"]
    return np.reshape(
        x if order is None else x.transpose(order), eqn.params["new_sizes"]
    )


def pure_callback(eqn, *ins):
    return jax.tree.leaves(eqn.params["callback"](*ins))


def divide(eqn, a, b):
    return a / b if a.dtype.kind == "f" else (a / b).astype(a.dtype)


def _of(fn):
    return lambda eqn, *ins: fn(*ins)


def _over(fn, name="axes"):
    """A function of an array and axes that are a parameter."""
    return lambda eqn, x: fn(x, tuple(map(int, eqn.params[name])))


def _along(fn, name="axis"):
    return lambda eqn, x: fn(x, eqn.params[name])


def _first(fn):
    return lambda eqn, x: fn(x, eqn.params["axes"][0])


UNARY = "abs cos exp expm1 floor log log1p sign sin sqrt square tanh".split()
PRIMITIVES = {
    **{
        name: _of(getattr(np, name))
        for name in UNARY
    },
    **{
        name: _of(getattr(np, known))
        for name, known in {
            "add": "add", "add_any": "add", "and": "bitwise_and",
            "eq": "equal", "ge": "greater_equal", "gt": "greater", "le": "less_equal",
            "lt": "less", "max": "maximum", "min": "minimum", "mul": "multiply",
            "ne": "not_equal", "neg": "negative", "not": "invert", "or": "bitwise_or",
            "pow": "power", "real": "real",
            "rem": "fmod", "sub": "subtract",
        }.items()
    },
    "argmax": _first(np.argmax),
    "argmin": _first(np.argmin),
    "broadcast_in_dim": broadcast_in_dim,
    "clamp": _of(lambda low, x, high: np.clip(x, low, high)),
    "concatenate": lambda eqn, *ins: np.concatenate(ins, eqn.params["dimension"]),
    "cond": cond,
    "conv_general_dilated": convolution,
    "convert_element_type": convert,
    "copy": _of(np.copy),
    "cumsum": cumsum,
    "div": divide,
    "dot_general": dot_general,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "fft": _of(functools.partial(np.fft.fft, axis=-1)),
    "gather": gather,
    "integer_pow": lambda eqn, x: x ** eqn.params["y"],
    "iota": iota,
    "logistic": _of(lambda x: 1 / (1 + np.exp(-x))),
    "optimization_barrier": lambda eqn, *ins: ins,
    "pad": pad,
    "pure_callback": pure_callback,
    "reduce_and": _over(np.all),
    "reduce_max": _over(np.max),
    "reduce_min": _over(np.min),
    "reduce_or": _over(np.any),
    "reduce_precision": reduce_precision,
    "reduce_sum": _over(np.sum),
    "reduce_window_sum": reduce_window_sum,
    "reshape": reshape,
    "rev": _over(np.flip, "dimensions"),
    "round": rounded,
    "rsqrt": _of(lambda x: 1 / np.sqrt(x)),
    "scan": scan,
    "scatter": scatter,
    "scatter-add": scatter,
    "select_n": select_n,
    "slice": slice_,
    "sort": sort,
    "split": lambda eqn, x: np.split(
        x, np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"]
    ),
    "squeeze": _over(np.squeeze, "dimensions"),
    "stack": lambda eqn, *ins: np.stack(ins, eqn.params["axis"]),
    "stop_gradient": _of(np.copy),
    "tile": _over(np.tile, "reps"),
    "top_k": top_k,
    "transpose": _over(np.transpose, "permutation"),
    "unstack": lambda eqn, x: list(np.moveaxis(x, eqn.params["axis"], 0)),
    "while": while_,
}  # fmt: skip
