"""Plane: a plane through three networks, and where on it others are.

It is that of Garipov et al. (2018, arXiv:1802.10026): with w_1, w_2 and w_3 the
networks, u = w_2 - w_1 and v = (w_3 - w_1) - <w_3 - w_1, u> / <u, u> u, the point
(x, y) is the network w_1 + x u / |u| + y v / |v|. Distances on it are distances of
variables.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jmudsc import paths

# By less than this share of the distance of the others, a network is on their line.
_FLAT = 0.01


@dataclass(frozen=True, eq=False)
class Plane:
    """A plane through three networks.

    Attributes:
        corners: the names of the three networks, of which the first is the origin.
        networks: their variables.
        places: of every network, on the plane or not, where on the plane it is nearest:
            (x, y).
        distances: of every network, how far it is from there.
    """

    corners: tuple[str, str, str]
    networks: tuple[PyTree, PyTree, PyTree]
    places: Mapping[str, tuple[float, float]]
    distances: Mapping[str, float]

    def shares(self, x: float, y: float) -> tuple[float, float, float]:
        """Return the share of each of the three networks in a point of the plane."""
        along, (across, height) = (self.places[name] for name in self.corners[1:])
        third = y / height
        second = (x - across * third) / along[0]
        return 1 - second - third, second, third


def plane_through(
    networks: Mapping[str, PyTree], ignored: Container[str] = ()
) -> Plane:
    """Lay a plane through the first three networks that are not on one line.

    All others are projected onto it. A network counts as on the line of two others if
    it is nearer to it than a hundredth of their distance.

    Args:
        networks: name -> variables, all of one structure and in one order of units.
        ignored: paths of leaves that distances leave out, running statistics say.

    Returns:
        The plane.

    Raises:
        ValueError: if all networks are on one line.
    """
    names = list(networks)
    floats = {name: _floats(tree, ignored) for name, tree in networks.items()}
    away = {name: _minus(tree, floats[names[0]]) for name, tree in floats.items()}
    corners, axes = _basis(away)
    if len(axes) < 2:
        given = ", ".join(f'"{name}"' for name in names)
        raise ValueError(
            "plane_through: expected three networks that are not on one line, got "
            f"{given}, which are. Add another network."
        )
    places = {name: _place(tree, *axes) for name, tree in away.items()}
    places |= {corners[0]: (0.0, 0.0), corners[1]: (places[corners[1]][0], 0.0)}
    distances = {}
    for name, tree in away.items():
        rest = _minus(_minus(tree, axes[0], places[name][0]), axes[1], places[name][1])
        distances[name] = 0.0 if name in corners else _length(rest)
    first, second, third = corners
    return Plane(
        (first, second, third),
        (networks[first], networks[second], networks[third]),
        places,
        distances,
    )


def _basis(away: Mapping[str, PyTree]) -> tuple[list[str], list[PyTree]]:
    """Return the corners of a plane and its axes, by Gram and Schmidt.

    Args:
        away: of every network, how it differs from the first.

    Returns:
        The first network and those that give an axis; at most two axes, fewer if all
        networks are on one line.
    """
    lengths = {name: _length(tree) for name, tree in away.items()}
    corners, axes = list(away)[:1], []
    for name, rest in away.items():
        for axis in axes:
            rest = _minus(rest, axis, _dot(rest, axis))
        height = _length(rest)
        scale = lengths[corners[1]] if axes else max(lengths.values())
        if len(axes) < 2 and height > _FLAT * scale:
            axes.append(_times(rest, 1 / height))
            corners.append(name)
    return corners, axes


def window(
    plane: Plane, points: int, margin: float = 0.25
) -> tuple[np.ndarray, np.ndarray]:
    """Choose a grid that has all networks of a plane on it, and some way around them.

    Args:
        plane: the plane.
        points: of the grid along each axis, at least 2.
        margin: how far the grid goes beyond the networks, as a share of the longer side
            of the rectangle around them.

    Returns:
        The x and the y of the grid.
    """
    places = np.array(list(plane.places.values()))
    low, high = places.min(axis=0), places.max(axis=0)
    more = margin * (high - low).max()
    xs, ys = np.linspace(low - more, high + more, points).T
    return xs, ys


def _place(tree: PyTree, first: PyTree, second: PyTree) -> tuple[float, float]:
    return _dot(tree, first), _dot(tree, second)


def _floats(tree: PyTree, ignored: Container[str]) -> dict[str, Any]:
    """Return the leaves by which distances are measured."""
    return {
        path: jnp.asarray(leaf)
        for path, leaf in paths.flatten(tree).items()
        if path not in ignored and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    }


@jax.jit
def _minus(a: PyTree, b: PyTree, share: Any = 1.0) -> PyTree:
    wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jax.tree.map(lambda x, y: wide(x) - share * wide(y), a, b)


@jax.jit
def _times(tree: PyTree, factor: Any) -> PyTree:
    return jax.tree.map(lambda x: x * factor, tree)


def _dot(a: PyTree, b: PyTree) -> float:
    return float(sum(map(float, _dots(a, b))))


def _length(tree: PyTree) -> float:
    return _dot(tree, tree) ** 0.5


@jax.jit
def _dots(a: PyTree, b: PyTree) -> list[Array]:
    high = jax.lax.Precision.HIGHEST
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [jnp.real(jnp.vdot(x, y, precision=high)) for x, y in pairs]
