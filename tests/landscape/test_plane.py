import re

import jax
import numpy as np
import pytest
import tiny

from jmudsc.landscape.losses import (
    mixed,
)
from jmudsc.landscape.plane import plane_through, window

NET = tiny.MLP


@pytest.fixture(scope="module")
def networks():
    return {name: tiny.variables(NET, seed) for seed, name in enumerate("ABMX")}


def test_places_are_those_of_an_orthonormal_basis(networks):
    plane = plane_through(networks)
    flat = {name: flattened(tree) for name, tree in networks.items()}
    basis, _ = np.linalg.qr(np.stack([flat["B"] - flat["A"], flat["M"] - flat["A"]]).T)
    for name, (x, y) in plane.places.items():
        away = flat[name] - flat["A"]
        place = basis.T @ away
        np.testing.assert_allclose(np.abs([x, y]), np.abs(place), rtol=1e-4, atol=1e-4)
        off = np.linalg.norm(away - basis @ place)
        np.testing.assert_allclose(plane.distances[name], off, rtol=1e-4, atol=1e-5)
        point = mixed(
            [networks[c] for c in plane.corners], np.array(plane.shares(x, y))
        )
        distance = np.linalg.norm(flattened(point) - flat[name])
        np.testing.assert_allclose(distance, off, rtol=1e-4, atol=1e-4)


def flattened(tree):
    return np.concatenate(
        [np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)]
    )


def test_networks_on_a_line_do_not_make_a_corner(networks):
    a, b = networks["A"], networks["B"]
    half = mixed([a, b], np.array([0.5, 0.5]))
    plane = plane_through({"A": a, "copy": a, "B": b, "half": half, "M": networks["M"]})
    assert plane.corners == ("A", "B", "M")
    assert plane.distances["half"] == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(
        plane.places["half"], np.array(plane.places["B"]) / 2, atol=1e-4
    )
    expected = (
        'plane_through: expected three networks that are not on one line, got "A", '
        '"B", "half", which are. Add another network.'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        plane_through({"A": a, "B": b, "half": half})


def test_distances_leave_out_what_they_are_told_to(networks):
    moved = {**networks["A"], "c/bias": networks["A"]["c/bias"] + 7}
    named = {"A": networks["A"], "moved": moved, "B": networks["B"], "M": networks["M"]}
    assert plane_through(named).corners == ("A", "moved", "B")
    assert plane_through(named, {"c/bias"}).corners == ("A", "B", "M")


def test_a_window_has_all_networks_and_a_margin_around_them(networks):
    plane = plane_through(networks)
    xs, ys = window(plane, 5, margin=0.5)
    places = np.array(list(plane.places.values()))
    more = np.ptp(places, axis=0).max() / 2
    np.testing.assert_allclose((xs[0], ys[0]), places.min(axis=0) - more)
    np.testing.assert_allclose((xs[-1], ys[-1]), places.max(axis=0) + more)
    assert len(xs) == len(ys) == 5
