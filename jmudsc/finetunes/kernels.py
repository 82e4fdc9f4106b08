"""Kernels: which leaves of a program are matrices, what goes into them, and how.

A kernel is an operand of a product or convolution whose other operand depends on the
batch. It must be a leaf but for a rearrangement of its entries, and may be one layer's
share of a leaf that a `scan` runs over. No module is looked for by name.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jmudsc.derivation.program import open_jaxpr, Program, scan_operands, shape_of
from jmudsc.derivation.terms.values import Place
from jmudsc.finetunes.leaf_layout import Layout
from jmudsc.repairs.contractions import Form, form_of, matrix

_CASTS = {"convert_element_type", "copy", "stop_gradient", "sharding_constraint"}
_MOVES = {"broadcast_in_dim", "dynamic_slice", "reshape", "rev", "slice", "squeeze"}
_MOVES |= {"transpose"}


@dataclass(frozen=True, eq=False)
class View:
    """A value that is a leaf with its entries moved about.

    Attributes:
        path: the leaf.
        shape: of the leaf.
        steps: what was done to it, each an equation and the number of loops around it;
            None for a loop that is entered with the same value in every step.
        loops: the number of loops around the value.
        own: which of these loops run over the leaf.
    """

    path: str
    shape: tuple[int, ...]
    steps: tuple[tuple[Any, int], ...] = ()
    loops: int = 0
    own: tuple[bool, ...] = ()

    def index(self) -> np.ndarray:
        """Return for each entry its place in the flattened leaf.

        The leading axes run over loops, of size 1 for those that do not change it.
        """
        index = jnp.arange(math.prod(self.shape), dtype=jnp.int32).reshape(self.shape)
        for eqn, loops in self.steps:
            if eqn is None:
                index = jnp.expand_dims(index, loops)
                continue
            move = functools.partial(_moved, eqn)
            for _ in range(loops):
                move = jax.vmap(move)
            index = move(index)
        return np.asarray(index)


@dataclass(frozen=True, eq=False)
class Kernel:
    """One use of a leaf as the kernel of a contraction.

    Attributes:
        eqn: the contraction.
        view: the operand, as a view of the leaf.
        form: how it is contracted.
        operand: where the activations are.
        shape: of the kernel as it is contracted.
    """

    eqn: Any
    view: View
    form: Form
    operand: Place
    shape: tuple[int, ...]

    def matrices(self) -> np.ndarray:
        """Return the places of the entries in the leaf, (matrices, in, out)."""
        stacked = self._by_step()
        return stacked.reshape(-1, *stacked.shape[2:])

    def letters(self) -> str | None:
        """Return what each axis of the leaf is (see `Layout`); None if none is one."""
        if self.view.steps:
            return _letters_of_index(self._by_step(), self.view.shape)
        letters = _letters_of_form(self.form, self.shape)
        return None if letters is None else "l" * self.view.loops + letters

    def _by_step(self) -> np.ndarray:
        """Return the places as (steps of loops, groups, in, out)."""
        index, loops = self.view.index(), self.view.loops
        steps = index.reshape(math.prod(index.shape[:loops]), *index.shape[loops:])
        return np.stack([matrix(self.form, step) for step in steps])


@dataclass(frozen=True, eq=False)
class Scale:
    """One use of a leaf as the scale of activations: the gamma of a norm.

    Attributes:
        view: the factor, as a view of the leaf.
        operands: where the activations are: what it multiplies is their product. Norms
            often multiply it by the reciprocal of the standard deviation, which has one
            entry for all units, and that by the activations.
    """

    view: View
    operands: tuple[Place, ...]


@dataclass(frozen=True)
class Kernels:
    """What a program does with its leaves.

    Attributes:
        uses: path -> every use as a kernel.
        scales: path -> every use as a scale.
        stacked: path -> over how many of its leading axes loops run.
        tables: the leaves of which entries are looked up.
        views: every value outside loops that is a leaf with its entries moved about.
    """

    uses: dict[str, list[Kernel]] = field(default_factory=dict)
    scales: dict[str, list[Scale]] = field(default_factory=dict)
    stacked: dict[str, int] = field(default_factory=dict)
    tables: set[str] = field(default_factory=set)
    views: dict[Any, View] = field(default_factory=dict)


def kernels_of(program: Program) -> Kernels:
    """Find the kernels of a program, those inside `scan` loops included."""
    found = Kernels()
    for path, var in program.leaves.items():
        found.views[var] = View(path, shape_of(var))
    _walk(program.eqns, found.views, set(program.inputs), (), found)
    return found


def layouts_by_use(
    kernels: Kernels, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Layout]:
    """Lay out all leaves by what a program does with them.

    Args:
        kernels: what it does.
        shapes: path -> shape, of all leaves.

    Returns:
        Path -> layout: matrices for kernels that are not looked up in and are used in
        one way only.
    """
    return {path: _layout(kernels, path, shape) for path, shape in shapes.items()}


def indexed(uses: Sequence[Kernel]) -> np.ndarray | None:
    """Return the matrices of a leaf by places, (matrices, in, out).

    Args:
        uses: all uses of the leaf.

    Returns:
        None if it is used in several ways, so that there is no one kernel.
    """
    first, *others = [use.matrices() for use in uses]
    if any(not np.array_equal(first, other) for other in others):
        return None
    return first if np.unique(first).size == first.size else None


def _layout(kernels: Kernels, path: str, shape: tuple[int, ...]) -> Layout:
    stacked = kernels.stacked.get(path, 0)
    plain = Layout("l" * stacked + "o" * (len(shape) - stacked))
    uses = kernels.uses.get(path, [])
    if not uses or path in kernels.tables:
        return plain
    letters = {use.letters() for use in uses}
    if len(letters) > 1:
        return plain
    (found,) = letters
    if found is not None:
        return Layout(found)
    index = indexed(uses)
    if index is None or index.shape[-1] == 1:  # a depthwise convolution
        return plain
    return Layout(plain.letters, index)


def _walk(
    eqns: Iterable[Any],
    views: dict[Any, View],
    data: set[Any],
    loops: tuple[Any, ...],
    found: Kernels,
) -> None:
    """Go through equations, adding to `views`, `data` and `found`."""
    partial: dict[Any, Scale] = {}  # products with what is not there for every unit
    for eqn in eqns:
        name = eqn.primitive.name
        ins = [var for var in eqn.invars if not isinstance(var, jex.Literal)]
        seen = [var for var in ins if var in views]
        if name in _CASTS | _MOVES and len(ins) == 1 and seen:
            steps = () if name in _CASTS else ((eqn, len(loops)),)
            views[eqn.outvars[0]] = _then(views[ins[0]], steps)
        elif name == "scan":
            _enter(eqn, views, data, loops, found)
        elif name in ("dot_general", "conv_general_dilated") and len(eqn.invars) == 2:
            _contract(eqn, views, data, loops, found)
        elif name == "mul" and len(seen) == 1 and data.intersection(ins):
            place = Place(next(var for var in ins if var in data), loops)
            scale = Scale(views[seen[0]], (place,))
            found.scales.setdefault(scale.view.path, []).append(scale)
            if shape_of(place.var) != shape_of(eqn.outvars[0]):
                partial[eqn.outvars[0]] = scale
        elif name in _CASTS and ins and ins[0] in partial:
            partial[eqn.outvars[0]] = partial[ins[0]]
        elif name == "mul" and sum(var in partial for var in ins) == 1 < len(ins):
            _complete(ins, partial, loops, found)
        elif name == "gather" and eqn.invars[0] in views:
            found.tables.add(views[eqn.invars[0]].path)
        if any(var in data for var in ins):
            data.update(eqn.outvars)


def _enter(
    eqn: Any,
    views: dict[Any, View],
    data: set[Any],
    loops: tuple[Any, ...],
    found: Kernels,
) -> None:
    """Go through the body of a `scan`."""
    body = open_jaxpr(eqn.params["jaxpr"])
    consts, carried = scan_operands(eqn)
    inner_views: dict[Any, View] = {}
    inner_data = set(body.invars[consts : consts + carried])
    for number, (outer, inner) in enumerate(zip(eqn.invars, body.invars, strict=True)):
        if isinstance(outer, jex.Literal):
            continue
        if outer in data:
            inner_data.add(inner)
        if outer in views and number < consts:
            inner_views[inner] = _into(views[outer], over=False)
        elif outer in views and number >= consts + carried:
            view = _into(views[outer], over=True)
            inner_views[inner] = view
            if not view.steps:
                found.stacked[view.path] = view.loops
    _walk(body.eqns, inner_views, inner_data, (*loops, eqn), found)
    data.update(eqn.outvars)


def _contract(
    eqn: Any,
    views: dict[Any, View],
    data: set[Any],
    loops: tuple[Any, ...],
    found: Kernels,
) -> None:
    sides = [i for i, var in enumerate(eqn.invars) if _is_in(var, views)]
    if len(sides) != 1 or not _is_in(eqn.invars[1 - sides[0]], data):
        return
    form, view = form_of(eqn, sides[0]), views[eqn.invars[sides[0]]]
    if form is not None:
        place = Place(eqn.invars[1 - sides[0]], loops)
        use = Kernel(eqn, view, form, place, shape_of(eqn.invars[sides[0]]))
        found.uses.setdefault(view.path, []).append(use)


def _complete(
    ins: Sequence[Any],
    partial: Mapping[Any, Scale],
    loops: tuple[Any, ...],
    found: Kernels,
) -> None:
    """Add to a scale what its product is multiplied by."""
    (scale,) = (partial[var] for var in ins if var in partial)
    (other,) = (Place(var, loops) for var in ins if var not in partial)
    uses = found.scales[scale.view.path]
    if scale in uses:  # else it is complete
        whole = Scale(scale.view, (*scale.operands, other))
        uses[uses.index(scale)] = whole


def _is_in(var: Any, known: Any) -> bool:
    return not isinstance(var, jex.Literal) and var in known


def _then(view: View, steps: tuple[tuple[Any, int], ...]) -> View:
    return View(view.path, view.shape, (*view.steps, *steps), view.loops, view.own)


def _into(view: View, over: bool) -> View:
    """Return a view as it is inside a loop, which runs over it or not."""
    steps = view.steps if over else (*view.steps, (None, view.loops))
    return View(view.path, view.shape, steps, view.loops + 1, (*view.own, over))


def _moved(eqn: Any, index: jax.Array) -> jax.Array:
    ins = [v.val if isinstance(v, jex.Literal) else index for v in eqn.invars]
    return eqn.primitive.bind(*ins, **eqn.params)


def _letters_of_form(form: Form, shape: tuple[int, ...]) -> str | None:
    """Return what the axes of a kernel are that is a leaf as it is."""
    letters = ["o"] * len(shape)
    if form.is_convolution:
        out, *into = form.param["dimension_numbers"].rhs_spec
        groups = form.param["feature_group_count"]
        if groups > 1:  # each channel by itself if they are as many
            return "".join(letters) if groups == shape[out] else None
        for axis in into:
            letters[axis] = "i"
        return "".join(letters)
    contracted, batch = (sides[form.side] for sides in form.param["dimension_numbers"])
    for letter, axes in (("i", contracted), ("b", batch)):
        for axis in axes:
            letters[axis] = letter
    return "".join(letters)


def _letters_of_index(index: np.ndarray, shape: tuple[int, ...]) -> str | None:
    """Return what the axes of a leaf are whose entries lie at these places.

    Args:
        index: (steps, groups, in, out).
        shape: of the leaf.

    Returns:
        One letter an axis; None if the matrices do not run along axes of the leaf.
    """
    letters = ["o"] * len(shape)
    if index.size != math.prod(shape):
        return None
    for dim, letter in enumerate("lbio"):
        first = np.moveaxis(index, dim, 0).reshape(index.shape[dim], -1)[:, 0]
        size = 1
        for axis, places in enumerate(np.unravel_index(first, shape)):
            if np.any(places != places[0]):
                letters[axis] = letter
                size *= shape[axis]
        if size != index.shape[dim]:
            return None
    return "".join(letters)
