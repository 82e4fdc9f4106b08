"""Check spec: proves a spec on the user's own model before anything is merged."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.keys import check_key
from jmudsc.reordering.permute import draws_of, permutations_by, permute
from jmudsc.sharding import placed_like, to_host
from jmudsc.spec.check_variables import check_covers
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn


def check_spec(
    spec: PermutationSpec,
    apply_fn: ApplyFn,
    variables: PyTree,
    batch: PyTree,
    *,
    key: jax.Array,
    tolerance: float | None = None,
) -> None:
    """Check on a model that its outputs do not change under the spec's permutations.

    A random element of the symmetry group, in which no label stays in place, is
    applied to the variables, and to a noisy copy of them, in which no bias is zero and
    no two units are alike, so that an error cannot hide. If outputs change, every label
    is tried alone to name the culprits.

    Args:
        spec: the permutation spec, derived or written by hand.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        variables: the model's variables.
        batch: one batch.
        key: a PRNG key.
        tolerance: largest change allowed, relative to the largest output; None for
            2**-10 in float32 and 2**-5 where a leaf or an output is of lower precision.

    Raises:
        ValueError: if the spec does not fit the variables, the outputs are not finite,
            or they change; the labels at fault are named.
    """
    check_key("check_spec", key)
    check_covers("check_spec", spec, paths.flatten(variables))
    bits, seed = map(np.asarray, _drawn(key, draws_of(spec)))
    perms = _moving(spec, permutations_by(spec, bits))
    apply = jax.jit(apply_fn)
    for make in (lambda: variables, lambda: _noisy(variables, seed)):
        model = make()
        expected = apply(model, batch)
        allowed = _tolerance(variables, expected) if tolerance is None else tolerance
        _check_outputs(expected, model is variables)
        if _change(expected, apply(permute(spec, model, perms), batch)) > allowed:
            single = {n: permute(spec, model, {n: perm}) for n, perm in perms.items()}
            alone = {n: _change(expected, apply(m, batch)) for n, m in single.items()}
            _refuse(spec, alone, allowed)


def _moving(
    spec: PermutationSpec, perms: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Roll the rows that leave all units in place: they would prove nothing."""
    moving = {}
    for name, perm in perms.items():
        units = np.arange(spec.labels[name].size)
        stays = (perm == units).all(axis=-1, keepdims=True)
        stays &= spec.labels[name].fixed is None
        moving[name] = np.where(stays, np.roll(perm, 1, axis=-1), perm)
    return moving


def _refuse(spec: PermutationSpec, alone: Mapping[str, float], allowed: float) -> None:
    culprits = {name: change for name, change in alone.items() if change > allowed}
    lines = []
    for name in culprits or alone:
        sites = ", ".join(f"{s.path}:{s.axis}" for s in spec.labels[name].sites)
        lines.append(f"{name} changes outputs by {alone[name]:.1e}; it is on {sites}")
    who = ", ".join(culprits) or "all labels together"
    raise ValueError(
        f"check_spec: expected outputs that stay as they are when {who} "
        f"{'is' if len(culprits) == 1 else 'are'} permuted, got changes of more than "
        f"{allowed:.1e} of the largest output:\n{paths.listed(lines)}\n"
        "Correct these labels, or derive the spec with infer_spec."
    )


@functools.partial(jax.jit, static_argnums=1)
def _drawn(key: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Draw what a random element takes, and a seed for the noise, in one program."""
    draw, noise = jax.random.split(key)
    return jax.random.bits(draw, (bits,)), jax.random.bits(noise, (4,))


def _noisy(variables: PyTree, seed: np.ndarray) -> PyTree:
    """Move every floating-point leaf by a tenth of its spread, and up by a little.

    Noise is drawn leaf by leaf on the host: of all leaves at once it would take several
    times the memory of a model in half precision.
    """
    draw = np.random.default_rng(seed)
    leaves = paths.flatten(variables)
    moved = {}
    for path, leaf in leaves.items():
        if _is_floating(leaf):
            noise = draw.standard_normal(np.shape(leaf), np.float32)
            wide = to_host(leaf).astype(np.float32)
            spread = wide.std() or 1.0
            noisy = wide * (1 + 0.1 * noise) + 0.1 * spread * np.abs(noise)
            moved[path] = placed_like(noisy.astype(jnp.result_type(leaf)), leaf)
    return paths.unflatten(variables, leaves | moved)


def _check_outputs(outputs: PyTree, given: bool) -> None:
    for path, leaf in paths.flatten(outputs).items():
        if given and _is_floating(leaf) and not np.isfinite(to_host(leaf)).all():
            raise ValueError(
                "check_spec: expected finite outputs, got NaN or infinity in "
                f'"{path}". Check the variables and the range of the batch.'
            )


def _change(expected: PyTree, actual: PyTree) -> float:
    """Return the largest change of an output, relative to its largest value."""
    changes = [0.0]
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        wide = [to_host(x).astype(np.float64) for x in (a, b)]
        largest = np.abs(wide[0]).max(initial=0.0)
        change = np.abs(wide[0] - wide[1]).max(initial=0.0)
        changes.append(float(np.nan_to_num(change / (largest or 1.0), nan=np.inf)))
    return max(changes)


def _tolerance(variables: PyTree, outputs: PyTree) -> float:
    floats = [x for x in jax.tree.leaves((variables, outputs)) if _is_floating(x)]
    coarse = any(jnp.finfo(jnp.result_type(x)).bits < 32 for x in floats)
    return 2.0**-5 if coarse else 2.0**-10


def _is_floating(leaf: object) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
