"""What each primitive does to the axes of its operands, one short rule a primitive.

A rule takes `(terms, eqn, ins)`, where `ins` has one list of terms (one per axis) for
each operand, ties together with `terms.unify` what must be permuted together, fixes
with `terms.pin` what is treated by position, and returns the axes of each output. The
laws are tested primitive by primitive on random shapes. A primitive without a rule
fixes all axes it touches: the result is sound whatever the program.
"""

from collections.abc import Callable
from typing import Any

from jmudsc.derivation.rules import slicing
from jmudsc.derivation.rules.common import (
    Axes,
    BY_POSITION,
    by_position,
    drop,
    pin_all,
    regroup,
    tie,
    unknown,
)
from jmudsc.derivation.terms.axis_terms import Terms

MEETS_INPUT = "meets an input of the network"

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
        Two tuples of axis numbers for products and convolutions (the input features),
        None for any other primitive.
    """
    match eqn.primitive.name:
        case "ragged_dot_general" if not _is_plain_ragged(eqn):
            return None
        case "dot_general" | "ragged_dot_general":
            return list(map(tuple, product_axes(eqn)[0]))
        case "conv_general_dilated":
            numbers = eqn.params["dimension_numbers"]
            return [(numbers.lhs_spec[1],), (numbers.rhs_spec[1],)]
    return None


def product_axes(eqn: Any) -> Any:
    """Return the axes that a product sums over and those it maps over, per operand."""
    if eqn.primitive.name == "dot_general":
        return eqn.params["dimension_numbers"]
    return eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers


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
        made += regroup(terms, group, new)
    return [[terms.leaf(1) if size == 1 else made.pop(0) for size in sizes]]


def transpose(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Carry each axis to its new place."""
    return [[ins[0][i] for i in eqn.params["permutation"]]]


def squeeze(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Drop axes of size 1."""
    return [drop(ins[0], tuple(map(int, eqn.params["dimensions"])))]


def reduce(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """A sum, maximum, ... over an axis does not depend on its order: drop it."""
    return [drop(ins[0], tuple(map(int, eqn.params["axes"])))]


def collective(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """A sum, maximum, ... over an axis that `vmap` made of devices: drop it."""
    axes = eqn.params["axes"]
    if eqn.params["axis_index_groups"] is not None or any(
        isinstance(axis, str) for axis in axes
    ):
        return unknown(terms, eqn, ins)
    return [drop(operand, axes) for operand in ins]


def dot_general(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Tie contracted and batch axes in pairs; the rest is carried over."""
    (lhs, rhs), ((lc, rc), (lb, rb)) = ins, eqn.params["dimension_numbers"]
    for i, j in zip(lc, rc, strict=True):
        terms.unify(lhs[i], rhs[j])
    batch = [
        tie(terms, terms.size(lhs[i]), [lhs[i], rhs[j]], of_one=True)
        for i, j in zip(lb, rb, strict=True)
    ]
    return [batch + drop(lhs, (*lc, *lb)) + drop(rhs, (*rc, *rb))]


def ragged_dot_general(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """Runs of rows meet one kernel each, in order: the kernels are fixed."""
    if not _is_plain_ragged(eqn):
        return unknown(terms, eqn, ins)
    (rows, lhs_in), (kernels, rhs_in, out), sizes = ins[:3]
    terms.unify(lhs_in, rhs_in)
    pin_all(terms, (rows, kernels, *sizes), BY_POSITION.format("ragged_dot_general"))
    return [[rows, out]]


def _is_plain_ragged(eqn: Any) -> bool:
    """Whether runs of the rows of a matrix meet a matrix each."""
    return product_axes(eqn) == (((1,), (1,)), ((), ()))


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
    pin_all(terms, spatial, reason)
    out = [terms.fixed(n, reason) for n in eqn.outvars[0].aval.shape]
    out[numbers.out_spec[0]] = lhs[numbers.lhs_spec[0]]
    out[numbers.out_spec[1]] = rhs_out
    return [out]


def fft(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """The axes transformed are fixed."""
    shape = eqn.outvars[0].aval.shape
    kept = len(shape) - len(eqn.params["fft_lengths"])
    pairs = zip(ins[0][kept:], shape[kept:], strict=True)
    return [ins[0][:kept] + [by_position(terms, axis, n, eqn) for axis, n in pairs]]


def rev(terms: Terms, eqn: Any, ins: list[Axes]) -> list[Axes]:
    """The axes reversed are fixed."""
    out = list(ins[0])
    for number in eqn.params["dimensions"]:
        out[number] = by_position(terms, out[number], terms.size(out[number]), eqn)
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
            fixed = [by_position(terms, axis, size, eqn) for axis in axes]
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
clz complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp
exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p
log2 logistic lt max min mul ne neg nextafter not one_minus_square or polygamma
population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt
select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
stop_gradient sub tan tanh xor zeta
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
    "concatenate": slicing.concatenate,
    "device_put": identity,
    "conv_general_dilated": conv_general_dilated,
    "dot_general": dot_general,
    "dynamic_slice": slicing.dynamic_slice,
    "dynamic_update_slice": slicing.dynamic_update_slice,
    "fft": fft,
    "name": identity,
    "optimization_barrier": identity,
    "pad": slicing.pad,
    "ragged_dot_general": ragged_dot_general,
    "reshape": reshape,
    "rev": rev,
    "sharding_constraint": identity,
    "slice": slicing.slice_,
    "split": slicing.split,
    "squeeze": squeeze,
    "stack": slicing.stack,
    "tile": slicing.tile,
    "transpose": transpose,
    "unstack": slicing.unstack,
}  # fmt: skip
