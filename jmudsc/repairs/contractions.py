"""Contractions of activations with a kernel, seen as products of matrices.

A lookup of rows by numbers is one as well, of what is 1 at a number and 0 elsewhere.

A `dot_general` with batch axes and a grouped convolution are both a stack of products
`rows @ columns`: one matrix of samples by incoming entries and one of incoming entries
by outgoing units per group. All sums are taken in float32 at the highest precision.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Shaped

from jmudsc.reordering.blocks import library_of, Values

_PARAMS = {
    "dot_general": ("dimension_numbers",),
    "conv_general_dilated": (
        "window_strides",
        "padding",
        "lhs_dilation",
        "rhs_dilation",
        "dimension_numbers",
        "feature_group_count",
    ),
    "gather": ("dimension_numbers", "slice_sizes", "mode"),
}


@dataclass(frozen=True)
class Form:
    """How a contraction is computed; equal forms share what is compiled.

    Attributes:
        name: of the primitive.
        params: those of its parameters that say what is multiplied with what.
        side: which operand is the kernel.
        free: the number of axes of the activations that are left free.
    """

    name: str
    params: tuple[tuple[str, Any], ...]
    side: int
    free: int

    @property
    def param(self) -> Mapping[str, Any]:
        """The parameters by name."""
        return dict(self.params)

    @property
    def is_convolution(self) -> bool:
        """Whether windows are slid over the activations."""
        return self.name == "conv_general_dilated"

    @property
    def is_lookup(self) -> bool:
        """Whether the activations are numbers of rows of the kernel."""
        return self.name == "gather"

    @property
    def looked_along(self) -> int:
        """The axis of the kernel that a lookup numbers."""
        return self.param["dimension_numbers"].start_index_map[0]


def form_of(eqn: Any, side: int) -> Form | None:
    """Describe a contraction with a kernel.

    Args:
        eqn: a `dot_general`, `conv_general_dilated` or `gather`.
        side: which operand is the kernel.

    Returns:
        The form; None for a convolution whose windows are activations, or that splits
        the batch into groups, and for a `gather` that is no lookup of rows.
    """
    name, params = eqn.primitive.name, eqn.params
    if name == "gather":
        if not is_lookup(eqn):
            return None
        free = len(eqn.invars[1].aval.shape) - 1
    elif name == "conv_general_dilated":
        if side == 0 or params["batch_group_count"] != 1:
            return None
        free = len(eqn.invars[0].aval.shape) - 1
    else:
        contracted, batch = params["dimension_numbers"]
        taken = len(contracted[1 - side]) + len(batch[1 - side])
        free = len(eqn.invars[1 - side].aval.shape) - taken
    return Form(name, tuple((key, params[key]) for key in _PARAMS[name]), side, free)


def is_lookup(eqn: Any) -> bool:
    """Return whether an equation looks rows of a matrix up by numbers, one each.

    Args:
        eqn: any equation.
    """
    if eqn.primitive.name != "gather":
        return False
    shape, numbers = eqn.invars[0].aval.shape, eqn.params["dimension_numbers"]
    along = tuple(numbers.start_index_map)
    sizes = tuple(1 if axis in along else size for axis, size in enumerate(shape))
    return (
        len(shape) == 2
        and len(along) == 1
        and tuple(numbers.collapsed_slice_dims) == along
        and tuple(eqn.params["slice_sizes"]) == sizes
    )


def unit_axes(form: Form, rank: int) -> tuple[int, ...]:
    """Return the axes of the output that the kernel gives it: those of its units.

    Args:
        form: of the contraction.
        rank: number of axes of the output.

    Returns:
        Axis numbers; all other axes run over samples.
    """
    if form.is_convolution:
        return (form.param["dimension_numbers"].out_spec[1],)
    if form.is_lookup:
        return tuple(form.param["dimension_numbers"].offset_dims)
    batch = len(form.param["dimension_numbers"][1][0])
    samples = range(batch, batch + form.free)
    if form.side == 0:
        samples = range(rank - form.free, rank)
    return tuple(axis for axis in range(rank) if axis not in samples)


@functools.partial(jax.jit, static_argnames="form")
def contract(
    form: Form, activations: ArrayLike, kernel: ArrayLike, bias: ArrayLike
) -> Float[Array, "..."]:
    """Contract activations with a kernel and add a bias.

    Args:
        form: of the contraction.
        activations: its one operand.
        kernel: its other operand.
        bias: of the rank of the output, of size 1 on axes of samples.

    Returns:
        The output, in float32.
    """
    k = jnp.asarray(kernel, jnp.float32)
    if form.is_lookup:
        numbers = jnp.asarray(activations)
        return jax.lax.gather(k, numbers, **form.param) + jnp.asarray(bias, jnp.float32)
    x = jnp.asarray(activations, jnp.float32)
    param: dict[str, Any] = dict(form.params)
    param["precision"] = jax.lax.Precision.HIGHEST
    if form.is_convolution:
        y = jax.lax.conv_general_dilated(x, k, **param)
    else:
        operands = (k, x) if form.side == 0 else (x, k)
        y = jax.lax.dot_general(*operands, **param)
    return y + jnp.asarray(bias, jnp.float32)


def rows(
    form: Form, activations: Array, kernel_shape: tuple[int, ...]
) -> Shaped[Array, "groups samples incoming"]:
    """Lay the activations out as the matrices that meet those of the kernel.

    Args:
        form: of the contraction.
        activations: its one operand.
        kernel_shape: the shape of its other operand.

    Returns:
        One row per product with the kernel: for a convolution one per window, with a
        copy of what the window covers.
    """
    if form.is_convolution:
        return _windows(form, activations, kernel_shape)
    contracted, batch = (sides[1 - form.side] for sides in _numbers(form))
    free = [i for i in range(activations.ndim) if i not in (*contracted, *batch)]
    x = jnp.transpose(activations, (*batch, *free, *contracted))
    return x.reshape(*_sizes(x.shape, len(batch), len(free)))


def columns(form: Form, output: Values) -> Shaped[Any, "groups samples outgoing"]:
    """Lay the output out as `rows(activations) @ matrix(kernel)`.

    Args:
        form: of the contraction.
        output: of the contraction, or of size 1 on all axes of samples; of numpy or
            of JAX.

    Returns:
        One row per sample.
    """
    library = library_of(output)
    if form.is_convolution:
        groups = form.param["feature_group_count"]
        batch, feature, *space = form.param["dimension_numbers"].out_spec
        y = library.transpose(output, (batch, *space, feature))
        return library.moveaxis(y.reshape(-1, groups, y.shape[-1] // groups), 1, 0)
    units = unit_axes(form, output.ndim)
    batch = 0 if form.is_lookup else len(_numbers(form)[1][0])
    samples = [axis for axis in range(output.ndim) if axis not in units]
    y = library.transpose(output, (*units[:batch], *samples, *units[batch:]))
    return y.reshape(*_sizes(y.shape, batch, len(samples)))


def matrix(form: Form, kernel: np.ndarray) -> np.ndarray:
    """Lay the kernel, or anything of its shape, out as matrices.

    Args:
        form: of the contraction.
        kernel: its operand.

    Returns:
        An array (groups, incoming, outgoing).
    """
    if form.is_convolution:
        out, into, *space = form.param["dimension_numbers"].rhs_spec
        groups = form.param["feature_group_count"]
        k = np.transpose(kernel, (into, *space, out))
        k = k.reshape(-1, groups, k.shape[-1] // groups)
        return np.moveaxis(k, 1, 0)
    if form.is_lookup:
        return np.moveaxis(kernel, form.looked_along, 0)[None]
    contracted, batch = (sides[form.side] for sides in _numbers(form))
    free = [i for i in range(kernel.ndim) if i not in (*contracted, *batch)]
    k = np.transpose(kernel, (*batch, *contracted, *free))
    return k.reshape(*_sizes(k.shape, len(batch), len(contracted)))


def looked_up(form: Form, numbers: Array, count: int) -> Shaped[Array, " samples"]:
    """Return the number of the row of each sample of a lookup.

    Args:
        form: of the lookup.
        numbers: its operand.
        count: number of rows; it stands for those that there are not.
    """
    rows = numbers.reshape(-1)
    if form.param["mode"] == jax.lax.GatherScatterMode.CLIP:
        return jnp.clip(rows, 0, count - 1)
    return jnp.where((rows < 0) | (rows >= count), count, rows)


@dataclass(frozen=True)
class Sliding:
    """How windows slide along one axis of space.

    Attributes:
        window: number of entries of a window.
        dilation: distance of two entries of a window.
        stride: distance of two windows.
        count: number of windows.
    """

    window: int
    dilation: int
    stride: int
    count: int


def sliding_of(
    form: Form, shape: Sequence[int], kernel_shape: Sequence[int]
) -> tuple[Sliding, ...]:
    """Return how windows slide along each axis of space.

    Args:
        form: of a convolution.
        shape: the shape of the activations.
        kernel_shape: that of the kernel.
    """
    param, numbers = form.param, form.param["dimension_numbers"]
    found = []
    for axis, (low, high) in enumerate(param["padding"]):
        window = kernel_shape[numbers.rhs_spec[axis + 2]]
        size, between = shape[numbers.lhs_spec[axis + 2]], param["lhs_dilation"][axis]
        size = low + high + max((size - 1) * between + 1, 0)
        dilation, stride = param["rhs_dilation"][axis], param["window_strides"][axis]
        count = (size - (window - 1) * dilation - 1) // stride + 1
        found.append(Sliding(window, dilation, stride, count))
    return tuple(found)


def padded(form: Form, x: Array) -> Shaped[Array, "batch features *space"]:
    """Pad the activations of a convolution, features before space.

    Args:
        form: of the convolution.
        x: the activations.
    """
    param = form.param
    edges = [
        (low, high, dilation - 1)
        for (low, high), dilation in zip(
            param["padding"], param["lhs_dilation"], strict=True
        )
    ]
    x = jnp.transpose(x, param["dimension_numbers"].lhs_spec)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *edges])


def _numbers(form: Form) -> Any:
    return form.param["dimension_numbers"]


def _sizes(shape: tuple[int, ...], first: int, second: int) -> tuple[int, int, int]:
    """Return the sizes of three runs of axes."""
    cuts = shape[:first], shape[first : first + second], shape[first + second :]
    one, two, three = map(math.prod, cuts)
    return one, two, three


def _windows(form: Form, x: Array, kernel_shape: tuple[int, ...]) -> Array:
    axes = sliding_of(form, x.shape, kernel_shape)
    groups = form.param["feature_group_count"]
    x, strides = padded(form, x), [axis.stride for axis in axes]
    parts = []
    for place in np.ndindex(*(axis.window for axis in axes)):
        starts = [i * axis.dilation for i, axis in zip(place, axes, strict=True)]
        ends = [
            start + (axis.count - 1) * axis.stride + 1
            for start, axis in zip(starts, axes, strict=True)
        ]
        parts.append(
            jax.lax.slice(x, (0, 0, *starts), (*x.shape[:2], *ends), (1, 1, *strides))
        )
    y = jnp.stack(parts, axis=2)  # batch, features, window, space
    y = y.reshape(y.shape[0], groups, -1, math.prod(axis.count for axis in axes))
    return jnp.transpose(y, (1, 0, 3, 2)).reshape(groups, -1, y.shape[2])
