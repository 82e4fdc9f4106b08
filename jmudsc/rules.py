"""What each primitive does to the axes of its operands, one short rule a primitive.

A rule takes `(terms, eqn, ins)`, where `ins` has one list of terms (one per axis) for
each operand, ties together with `terms.unify` what must be permuted together, fixes
with `terms.pin` what is treated by position, and returns the axes of each output. The
laws are tested primitive by primitive on random shapes. A primitive without a rule
fixes all axes it touches: the result is sound whatever the program.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jmudsc.terms import Terms, TOLD_APART

MEETS_INPUT = "meets an input of the network"
BY_POSITION = "is treated by position in {}"

# Up to this many positions of an axis are told apart one by one.
_MOST_MEMBERS = 256

Axes = list[int]
Rule = Callable[[Terms, Any, list[Axes]], list[Axes]]


def apply_rule(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Return the axes of each output of an equation, tying and fixing terms.

    Args:
        terms: the arena, changed in place.
        eqn: a jaxpr equation.
        ins: per operand, one term per axis.

    Returns:
        Per output, one term per axis.
    """
    return RULES.get(eqn.primitive.name, unknown)(terms, eqn, ins)


def contraction(eqn: Any) -> list[tuple[int, ...]] | None:
    """Return per operand the axes that an equation sums over, if it is a contraction.

    Args:
        eqn: a jaxpr equation.

    Returns:
        Two tuples of axis numbers for `dot_general` and `conv_general_dilated` (the
        input features), None for any other primitive.
    """
    match eqn.primitive.name:
        case "dot_general":
            return list(map(tuple, eqn.params["dimension_numbers"][0]))
        case "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            return [(numbers.lhs_spec[1],), (numbers.rhs_spec[1],)]
    return None


def unknown(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Fix everything a primitive touches."""
    reason = f"is touched by {eqn.primitive.name}, which has no rule"
    _pin_all(terms, (axis for axes in ins for axis in axes), reason)
    return [[terms.fixed(n, reason) for n in out.aval.shape] for out in eqn.outvars]


def elementwise(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Tie aligned axes; an operand of size 1 or rank 0 is broadcast."""
    shape = eqn.outvars[0].aval.shape
    is_product = eqn.primitive.name in ("mul", "div")
    out = [
        tie(terms, size, [axes[i] for axes in ins if axes], of_one=is_product)
        for i, size in enumerate(shape)
    ]
    return [out] * len(eqn.outvars)


def identity(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Every operand comes out as it went in."""
    return ins


def broadcast_in_dim(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """New and widened axes are constant along themselves, so free."""
    shape, kept = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    source = dict(zip(kept, ins[0], strict=True))
    return [
        [tie(terms, n, [source[i]] if i in source else []) for i, n in enumerate(shape)]
    ]


def reshape(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Within the smallest groups of axes of equal size, both sides are one product."""
    if eqn.params["dimensions"] is not None:
        return unknown(terms, eqn, ins)
    before = [axis for axis in ins[0] if terms.size(axis) != 1]
    sizes = eqn.outvars[0].aval.shape
    after = [size for size in sizes if size != 1]
    if 0 in sizes:
        return unknown(terms, eqn, ins)
    made: Axes = []
    while after:
        group, new = [before.pop(0)], [after.pop(0)]
        have, want = terms.size(group[0]), new[0]
        while have != want:
            if have < want:
                group.append(before.pop(0))
                have *= terms.size(group[-1])
            else:
                new.append(after.pop(0))
                want *= new[-1]
        made += _regroup(terms, group, new)
    return [[terms.leaf(1) if size == 1 else made.pop(0) for size in sizes]]


def transpose(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Carry each axis to its new place."""
    return [[ins[0][i] for i in eqn.params["permutation"]]]


def squeeze(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Drop axes of size 1."""
    return [_drop(ins[0], eqn.params["dimensions"])]


def reduce(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """A sum, maximum, ... over an axis does not depend on its order: drop it."""
    return [_drop(ins[0], eqn.params["axes"])]


def collective(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """A sum, maximum, ... over an axis that `vmap` made of devices: drop it."""
    axes = eqn.params["axes"]
    if eqn.params["axis_index_groups"] is not None or any(
        isinstance(axis, str) for axis in axes
    ):
        return unknown(terms, eqn, ins)
    return [_drop(operand, axes) for operand in ins]


def dot_general(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Tie contracted and batch axes in pairs; the rest is carried over."""
    (lhs, rhs), ((lc, rc), (lb, rb)) = ins, eqn.params["dimension_numbers"]
    for i, j in zip(lc, rc, strict=True):
        terms.unify(lhs[i], rhs[j])
    batch = [
        tie(terms, terms.size(lhs[i]), [lhs[i], rhs[j]], of_one=True)
        for i, j in zip(lb, rb, strict=True)
    ]
    return [batch + _drop(lhs, (*lc, *lb)) + _drop(rhs, (*rc, *rb))]


def conv_general_dilated(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Tie channels in, per feature group; spatial axes are fixed."""
    (lhs, rhs), numbers = ins, eqn.params["dimension_numbers"]
    if eqn.params["batch_group_count"] != 1:
        return unknown(terms, eqn, ins)
    groups = terms.leaf(eqn.params["feature_group_count"])
    lhs_in, rhs_in = lhs[numbers.lhs_spec[1]], rhs[numbers.rhs_spec[1]]
    rhs_out = rhs[numbers.rhs_spec[0]]
    per_group = terms.leaf(terms.size(rhs_out) // terms.size(groups))
    terms.unify(lhs_in, terms.product((groups, rhs_in)))
    terms.unify(rhs_out, terms.product((groups, per_group)))
    reason = "is a spatial axis of a convolution"
    spatial = [lhs[i] for i in numbers.lhs_spec[2:]] + [
        rhs[i] for i in numbers.rhs_spec[2:]
    ]
    _pin_all(terms, spatial, reason)
    out = [terms.fixed(n, reason) for n in eqn.outvars[0].aval.shape]
    out[numbers.out_spec[0]] = lhs[numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = rhs_out
    return [out]


def concatenate(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Concatenate along one axis, tie the others.

    Along an axis that is fixed anyway (a stack) the others may differ by position.
    """
    return _joined(terms, eqn.params["dimension"], ins)


def stack(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Put values of one shape along a new axis."""
    along = eqn.params["axis"]
    ins = [[*axes[:along], terms.leaf(1), *axes[along:]] for axes in ins]
    return _joined(terms, along, ins)


def split(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Cut one axis into parts, carry the others."""
    along, start = eqn.params["axis"], 0
    outs = []
    for size in map(int, eqn.params["sizes"]):
        outs.append(_part(terms, ins[0], along, start, size))
        start += size
    return outs


def unstack(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Take every position of one axis on its own."""
    along = eqn.params["axis"]
    parts = [_part(terms, ins[0], along, i, 1) for i in range(len(eqn.outvars))]
    return [_drop(part, (along,)) for part in parts]


def slice_(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Cut a contiguous part out of every axis, or every n-th position of all."""
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    out = ins[0]
    for number, (start, limit, stride) in enumerate(
        zip(starts, limits, strides, strict=True)
    ):
        whole, size = terms.size(out[number]), -(-(limit - start) // stride)
        if stride == 1:
            out = _part(terms, out, number, start, size)
        elif start < stride and size * stride == whole:
            out = _every(terms, out, number, start, stride)
        else:
            fixed = _by_position(terms, out[number], size, eqn)
            out = [*out[:number], fixed, *out[number + 1 :]]
    return [out]


def dynamic_slice(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Carry axes taken whole; the others are fixed."""
    sizes = zip(ins[0], eqn.params["slice_sizes"], strict=True)
    return [
        [a if terms.size(a) == n else _by_position(terms, a, n, eqn) for a, n in sizes]
    ]


def dynamic_update_slice(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Tie axes written whole; the others are fixed."""
    for axis, new in zip(ins[0], ins[1], strict=True):
        if terms.size(axis) == terms.size(new):
            terms.unify(axis, new)
        else:
            _pin_all(terms, (axis, new), BY_POSITION.format(eqn.primitive.name))
    return [ins[0]]


def tile(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Repeats run slowest, and are all alike."""
    pairs = zip(ins[0], eqn.params["reps"], strict=True)
    return [[terms.product((terms.leaf(n), axis)) for axis, n in pairs]]


def fft(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """The axes transformed are fixed."""
    shape = eqn.outvars[0].aval.shape
    kept = len(shape) - len(eqn.params["fft_lengths"])
    pairs = zip(ins[0][kept:], shape[kept:], strict=True)
    return [ins[0][:kept] + [_by_position(terms, axis, n, eqn) for axis, n in pairs]]


def rev(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """The axes reversed are fixed."""
    out = list(ins[0])
    for number in eqn.params["dimensions"]:
        out[number] = _by_position(terms, out[number], terms.size(out[number]), eqn)
    return [out]


def pad(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Concatenate constants before and after; interior or negative padding fixes."""
    out = []
    for axis, (low, high, interior) in zip(
        ins[0], eqn.params["padding_config"], strict=True
    ):
        if (low, high, interior) == (0, 0, 0):
            out.append(axis)
        elif interior == 0 and low >= 0 and high >= 0:
            ends = terms.leaf(int(low)), terms.leaf(int(high))
            out.append(terms.concat([ends[0], axis, ends[1]]))
        else:
            out.append(
                _by_position(terms, axis, eqn.outvars[0].aval.shape[len(out)], eqn)
            )
    return [out]


def reduce_window(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Carry axes along which each window is its own position; fix the others."""
    steps = [
        eqn.params[name]
        for name in (
            "window_dimensions",
            "window_strides",
            "base_dilation",
            "padding",
        )
    ]
    out = []
    for i, size in enumerate(eqn.outvars[0].aval.shape):
        axes = [operand[i] for operand in ins if operand]
        if [step[i] for step in steps] == [1, 1, 1, (0, 0)]:
            out.append(tie(terms, size, axes))
        else:
            fixed = [_by_position(terms, axis, size, eqn) for axis in axes]
            out.append(fixed[0])
    return [out] * len(eqn.outvars)


def cumulative(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """The axis run along is fixed."""
    along, out = eqn.params["axis"], list(ins[0])
    reason = f"is run along by {eqn.primitive.name}"
    terms.pin(out[along], reason)
    out[along] = terms.fixed(terms.size(out[along]), reason)
    return [out]


_ELEMENTWISE = """
abs acos acosh add and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2
expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic
lt max min mul ne neg nextafter not or polygamma population_count pow real
reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub
tan tanh xor zeta
""".split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and",
         "reduce_or", "reduce_xor"), reduce,
    ),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_sum", "reduce_window_max",
     "reduce_window_min"), reduce_window,
    ),
    **dict.fromkeys(("pmax", "pmin", "psum"), collective),
    **dict.fromkeys(
        ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), cumulative,
    ),
    "broadcast_in_dim": broadcast_in_dim,
    "concatenate": concatenate,
    "device_put": identity,
    "conv_general_dilated": conv_general_dilated,
    "dot_general": dot_general,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "fft": fft,
    "optimization_barrier": identity,
    "pad": pad,
    "reshape": reshape,
    "rev": rev,
    "sharding_constraint": identity,
    "slice": slice_,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
    "transpose": transpose,
    "unstack": unstack,
}  # fmt: skip


def _pin_all(terms: Terms, axes: Any, reason: str) -> None:
    for axis in axes:
        terms.pin(axis, reason)


def tie(terms: Terms, size: int, axes: Sequence[int], of_one: bool = False) -> int:
    """Unify the axes of full size and return what they are; a new leaf if none is.

    Args:
        terms: the arena, changed in place.
        size: the full size; axes of size 1 are broadcast.
        axes: the terms.
        of_one: whether what they make sums over units if one of them does (a product).

    Returns:
        One term of that size.
    """
    full = dict.fromkeys(axis for axis in axes if terms.size(axis) == size)
    if len(full) == 1:
        return next(iter(full))
    tied = terms.leaf(size, origin=full, of_one=of_one)
    for axis in full:
        terms.unify(axis, tied)
    return tied


def _drop(axes: Axes, numbers: Sequence[int]) -> Axes:
    return [axis for i, axis in enumerate(axes) if i not in numbers]


def _regroup(terms: Terms, group: Axes, sizes: list[int]) -> Axes:
    if len(group) == len(sizes) == 1:
        return group
    new = [terms.leaf(size, origin=group) for size in sizes]
    terms.unify(terms.product(group), terms.product(new))
    return new


def _part(terms: Terms, axes: Axes, along: int, start: int, size: int) -> Axes:
    """Take positions start..start+size of one axis.

    Where the axis is fixed anyway, or taken one position at a time, the other axes may
    differ by position: they are seen as what they are at those taken.
    """
    axis, whole = axes[along], terms.size(axes[along])
    if size == whole:
        return axes
    if size != 1 and not _is_told_apart(terms, axis):
        part = _cut(terms, axis, (start, size, whole - start - size))[1]
        return [*axes[:along], part, *axes[along + 1 :]]
    terms.pin(axis, TOLD_APART)
    part = terms.fixed(size, TOLD_APART)
    if not _is_told_apart(terms, axis) or whole > _MOST_MEMBERS:
        return [*axes[:along], part, *axes[along + 1 :]]
    out = []
    for number, other in enumerate(axes):
        places = range(start, start + size)
        if number == along or not any(
            terms.reason(a) is None for a in terms.leaves(other)
        ):
            out.append(part if number == along else other)
        else:
            out.append(
                terms.family(part, [terms.member(other, axis, p) for p in places])
            )
    return out


def _every(terms: Terms, axes: Axes, along: int, start: int, stride: int) -> Axes:
    """Take one column of an axis laid out in rows of `stride` positions."""
    size = terms.size(axes[along]) // stride
    grid = _regroup(terms, [axes[along]], [size, stride])
    axes = [*axes[:along], *grid, *axes[along + 1 :]]
    return _drop(_part(terms, axes, along + 1, start, 1), (along + 1,))


def _joined(terms: Terms, along: int, ins: list[Axes]) -> list[Axes]:
    runs = [axes[along] for axes in ins]
    total = sum(map(terms.size, runs))
    if all(_is_told_apart(terms, run) for run in runs) and total <= _MOST_MEMBERS:
        whole = terms.fixed(total, TOLD_APART)
        out = [_along(terms, whole, number, ins, runs) for number in range(len(ins[0]))]
        out[along] = whole
        return [out]
    out = [
        tie(terms, max(map(terms.size, same)), same)
        for number, same in enumerate(zip(*ins, strict=True))
        if number != along
    ]
    out.insert(along, terms.concat(runs))
    return [out]


def _along(
    terms: Terms, whole: int, number: int, ins: list[Axes], runs: list[int]
) -> int:
    """What an axis is at every position of the axis joined along."""
    places = [
        terms.member(axes[number], run, position)
        if terms.size(run) > 1
        else axes[number]
        for axes, run in zip(ins, runs, strict=True)
        for position in range(terms.size(run))
    ]
    return terms.family(whole, places)


def _is_told_apart(terms: Terms, axis: int) -> bool:
    """Whether the positions of an axis are picked one by one, as those of a stack."""
    return terms.size(axis) == 1 or terms.reason(axis) == TOLD_APART


def _cut(terms: Terms, axis: int, sizes: Sequence[int]) -> Axes:
    parts = [terms.leaf(size, origin=[axis]) for size in sizes]
    terms.unify(axis, terms.concat(parts))
    return parts


def _by_position(terms: Terms, axis: int, size: int, eqn: Any) -> int:
    reason = BY_POSITION.format(eqn.primitive.name)
    terms.pin(axis, reason)
    return terms.fixed(size, reason)
