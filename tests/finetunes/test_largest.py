"""Thresholds against sorting everything."""

import numpy as np
import pytest

from jmudsc.finetunes import largest
from jmudsc.finetunes.largest import thresholds
from jmudsc.finetunes.piece import Piece


def entries(*deltas):
    models = tuple(np.asarray(delta, np.float32) for delta in deltas)
    return Piece(np.zeros_like(models[0]), models, {}).entries


def by_sorting(delta, density):
    size = np.abs(np.asarray(delta, np.float32))
    return np.sort(size)[-max(1, int(density * size.size))]


def draw(kind, size):
    generator = np.random.default_rng(7)
    values = generator.normal(size=size)
    match kind:
        case "atoms":
            return np.round(values)  # a few magnitudes, each of many entries
        case "equal":
            return np.full(size, -0.5)
        case "zeros":
            return values * (generator.random(size) < 0.1)
        case "one large part":
            values[: size // 8] *= 100  # which few places of the sample see
        case "sorted":
            values = np.sort(values)
        case "hidden":  # from the sample: it looks at the same places every time
            length = largest.SAMPLE // largest.PLACES
            for start in np.linspace(0, size - length, largest.PLACES).astype(int):
                values[start : start + length] = 0
    return values


KINDS = ["normal", "atoms", "equal", "zeros", "one large part", "sorted", "hidden"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 1000, largest.FEW + 12345])
def test_a_threshold_is_the_one_of_sorting_to_the_bit(kind, size):
    if kind == "hidden" and size < largest.FEW:
        pytest.skip("is not sampled")
    delta = draw(kind, size)
    for density in (1e-9, 0.01, 0.2, 0.5, 0.999):
        (found,) = thresholds(entries(delta), [density])
        assert found == by_sorting(delta, density)
        assert isinstance(found, np.float32)


def test_every_model_has_its_own():
    deltas = [draw("normal", 300_000), draw("atoms", 300_000), draw("equal", 300_000)]
    found = thresholds(entries(*deltas), [0.1, 0.3, 1.0])
    assert found == (by_sorting(deltas[0], 0.1), by_sorting(deltas[1], 0.3), 0)


@pytest.mark.parametrize("kind", ["normal", "hidden"])
def test_one_pass_is_enough_unless_the_sample_misleads(kind, monkeypatch):
    passes = []
    counted = largest._count
    monkeypatch.setattr(
        largest, "_count", lambda *given: (passes.append(1), counted(*given))
    )
    thresholds(entries(draw(kind, 300_000)), [0.2])
    assert (len(passes) == 1) == (kind == "normal")
