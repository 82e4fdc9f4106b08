"""Read spec: specs written by hand, in whole or a few rows of a derived one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import PyTree

from jmudsc.derivation.infer_spec import roles
from jmudsc.derivation.label_sizes import with_sizes
from jmudsc.derivation.program import shape_of, trace
from jmudsc.paths import did_you_mean, listed
from jmudsc.spec.alike import move_alike
from jmudsc.spec.axes import atoms_in, Axis, labels_by_axis, Units
from jmudsc.spec.notation import (
    axes_of,
    by_leaf,
    LeafAxes,
    read_table,
    Row,
    Table,
)
from jmudsc.spec.permutation_spec import (
    fixed_sites,
    Label,
    labels_of,
    PermutationSpec,
    Site,
)
from jmudsc.types import ApplyFn

OuterLabels = Mapping[str, str | Sequence[str]]


def read_spec(
    rows: str | Mapping[str, Row],
    apply_fn: ApplyFn,
    variables: PyTree,
    batch: PyTree,
    *,
    parents: OuterLabels | None = None,
    sizes: Mapping[str, int] | None = None,
) -> PermutationSpec:
    """Read a spec written by hand, or the text of one that was printed.

    The form is checked, not whether the network computes the same function after its
    units are permuted; `check_spec` proves that. What the rows do not say is read from
    the program: which axes are summed over, which leaves are running statistics.

    Args:
        rows: leaf path -> its axes, one row for every leaf: `"4*P_1, 10"`, or one entry
            per axis, a label, an expression, a length, or None for an axis that stays
            (Git Re-Basin's `axes_to_perm` is such a mapping). The first part of a path
            (`params/`) may be left out where one leaf is meant. Or the whole text that
            `print(spec)` shows.
        apply_fn: a pure JAX function `(variables, batch) -> outputs`, in evaluation
            mode.
        variables: a pytree of arrays or `jax.ShapeDtypeStruct`s; nothing is allocated.
        batch: one batch, of arrays or shapes as well.
        parents: label -> the labels, outermost first, per unit of which it may be
            permuted anew: a sequence, or text with blanks between.
        sizes: label -> units, for labels whose size does not follow from the shapes.

    Returns:
        The spec; its labels are in the order in which they are written.

    Raises:
        ValueError: if a leaf has no row, or a row, a size or a nesting cannot be so;
            every problem of the first kind that is found is listed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def apply_fn(variables, x):
        ...     return jax.nn.relu(x @ variables["in"]) @ variables["out"]
        >>> variables = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
        >>> rows = {"in": (None, "P_0"), "out": "P_0, 2"}
        >>> spec = read_spec(rows, apply_fn, variables, jnp.ones((4, 3)))
        >>> spec.labels["P_0"].size
        8
    """
    where = "read_spec"
    table = read_table(where, rows) if isinstance(rows, str) else Table(rows)
    program = trace(apply_fn, variables, batch)
    shapes = {path: shape_of(var) for path, var in program.leaves.items()}
    found = by_leaf(where, table.rows, shapes)
    missing = [path for path in shapes if path not in found]
    if missing:
        raise ValueError(
            f"{where}: expected a row for every leaf, got none for:\n"
            f"{listed(missing)}\nGive each a row, all None if its axes stay."
        )
    axes = axes_of(where, found, shapes)
    sizes = {**table.sizes, **_of_labels(where, "sizes", axes, sizes or {})}
    axes = with_sizes(where, axes, shapes, sizes)
    parents = _of_labels(where, "parents", axes, parents or {})
    order = [*table.sizes, *_units(axes)]
    axes = {path: axes[path] for path in shapes}
    labels = _labels(where, axes, order, {**table.outer, **parents}, table.held)
    fixed = _reasons(axes, table.fixed)
    spec = PermutationSpec(axes, labels, fixed, **vars(roles(program)))
    return move_alike(where, spec, table.alike)


def override(
    spec: PermutationSpec,
    rows: Mapping[str, Row],
    *,
    parents: OuterLabels | None = None,
    sizes: Mapping[str, int] | None = None,
) -> PermutationSpec:
    """Replace some rows of a spec.

    Labels that are new are added, labels that are on no leaf any more are gone. As
    for `read_spec`, only the form is checked.

    Args:
        spec: the permutation spec.
        rows: leaf path -> its axes, as for `read_spec`.
        parents: label -> the labels it is nested in, as for `read_spec`; the others
            keep theirs.
        sizes: label -> units, for new labels whose size does not follow from the
            shapes.

    Returns:
        The new spec.

    Raises:
        ValueError: if a row, a size or a nesting cannot be so.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jmudsc import infer_spec
        >>> def apply_fn(variables, x):
        ...     return jax.nn.relu(x @ variables["in"]) @ variables["out"]
        >>> variables = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2))}
        >>> spec = infer_spec(apply_fn, variables, jnp.ones((4, 3)))
        >>> override(spec, {"out": "hidden, 2", "in": "3, hidden"}).labels.keys()
        dict_keys(['hidden'])
    """
    where = "override"
    shapes = {path: tuple(a.size for a in row) for path, row in spec.axes.items()}
    found = by_leaf(where, rows, spec.axes)
    axes = {**spec.axes, **axes_of(where, found, shapes)}
    before = {name: label.size for name, label in spec.labels.items()}
    sizes = _of_labels(where, "sizes", axes, sizes or {})
    axes = with_sizes(where, axes, shapes, sizes, before)
    nested = {name: label.parents for name, label in spec.labels.items()}
    nested.update(_of_labels(where, "parents", axes, parents or {}))
    held = {name: label.fixed for name, label in spec.labels.items() if label.fixed}
    labels = _labels(where, axes, before, nested, held)
    return replace(spec, axes=axes, labels=labels, fixed=_reasons(axes, spec.fixed))


def _of_labels(
    where: str, what: str, axes: LeafAxes, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Check that everything said of labels is said of labels that are on leaves."""
    names = _units(axes)
    unknown = [f'"{n}"{did_you_mean(n, names)}' for n in values if n not in names]
    if unknown:
        raise ValueError(
            f"{where}: expected {what} of labels that are on leaves, got {what} of:\n"
            f"{listed(unknown)}\nCorrect the names, or put the labels on leaves."
        )
    return dict(values)


def _units(axes: LeafAxes) -> dict[str, int]:
    """Return the labels on the leaves, in that order, and their sizes."""
    atoms = (atom for row in axes.values() for axis in row for atom in atoms_in(axis))
    return {atom.label: atom.size for atom in atoms if isinstance(atom, Units)}


def _labels(
    where: str,
    axes: LeafAxes,
    order: Iterable[str],
    parents: OuterLabels,
    held: Mapping[str, str],
) -> dict[str, Label]:
    """Build the label records: those in `order` first, those on no leaf left out."""
    sizes = _units(axes)
    order = [name for name in dict.fromkeys([*order, *sizes]) if name in sizes]
    nested = {
        name: tuple(row.split() if isinstance(row, str) else row)
        for name, row in parents.items()
        if name in sizes
    }
    problems = [
        problem
        for name in nested
        for problem in _nesting_problems(axes, nested, sizes, name)
    ]
    if problems:
        raise ValueError(
            f"{where}: expected every label to lie along with its outer labels on "
            f"every leaf that it is on, got:\n{listed(problems)}\n"
            "Correct the rows, or what the labels are nested in."
        )
    return labels_of(axes, {name: sizes[name] for name in order}, nested, held)


def _nesting_problems(
    axes: LeafAxes,
    nested: Mapping[str, tuple[str, ...]],
    known: Iterable[str],
    name: str,
) -> Iterator[str]:
    for number, outer in enumerate(nested[name]):
        what, before = f'"{name}" is nested in "{outer}"', nested[name][:number]
        further = [label for label in nested.get(outer, ()) if label not in before]
        if outer not in known:
            others = [label for label in known if label != name]
            yield f"{what}, which is on no leaf{did_you_mean(outer, others)}"
        elif outer == name:
            yield f'"{name}" is nested in itself'
        elif outer in before:
            yield f"{what} twice"
        elif name in further:
            yield f'"{name}" and "{outer}" are nested in each other'
        elif further:
            yield f'{what}, and that in "{further[0]}", which must come before it'
        else:
            for path, row in axes.items():
                if not _lies_along(row, name, outer):
                    yield f"{what}, which does not lie along with it, once, on {path}"


def _lies_along(row: tuple[Axis, ...], name: str, outer: str) -> bool:
    """Whether each place of a label has one of the outer label, on its axis or not."""
    return all(
        here.count(outer) == 1 or sum(labels.count(outer) for labels in block) == 1
        for block in labels_by_axis(row)
        for here in block
        if name in here
    )


def _reasons(axes: LeafAxes, known: Mapping[Site, str]) -> dict[Site, str]:
    """Say why, for every axis that is fixed, wholly or in part."""
    return {
        site: known.get(site, f"{part}is fixed by hand")
        for site, part in fixed_sites(axes).items()
    }
