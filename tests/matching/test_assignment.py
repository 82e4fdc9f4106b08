import importlib.util
import itertools
import math
import re
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from recorded import partition, read, rows
from scipy.optimize import linear_sum_assignment

from jmudsc import align, zip_units

ROOT = Path(__file__).parents[2]


def draw(seed, models, units, kind="random"):
    generator = np.random.default_rng([seed, models, units])
    total = models * units
    match kind:
        case "random":
            s = generator.uniform(-1, 1, (total, total))
        case "ties":
            s = generator.integers(-2, 3, (total, total)) / 4
        case "negative":
            s = -(2.0 ** generator.integers(-4, 1, (total, total)))
        case "constant":
            s = np.full((total, total), 0.5)
    return np.maximum(s, s.T).astype(np.float32)


def zip_by_definition(similarity, models, a, b):
    """Merge pairs one by one, each chosen from a list of all that are allowed."""
    s = similarity.copy()
    total = len(s)
    units = total // models
    live = list(range(total))
    members = [[unit] for unit in live]
    budget = [math.floor(b * math.floor((total - units) / models))] * models
    while len(live) > units:
        allowed = [
            (i, j)
            for i, j in itertools.combinations(live, 2)
            if i // units != j // units or budget[i // units] > 0
        ]
        i, j = max(allowed, key=lambda pair: s[pair])  # the first of equal ones
        if i // units == j // units:
            budget[i // units] -= 1
        for k in live:
            s[i, k] = s[k, i] = min(s[i, k], s[j, k]) * np.float32(a)
        members[i] += members[j]
        live.remove(j)
    result = np.empty(total, int)
    for number, unit in enumerate(live):
        result[members[unit]] = number
    return result.reshape(models, units)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("units", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_align_is_the_best_of_all_permutations(seed, units, models):
    similarity = draw(seed, models, units)
    result = align(similarity, models)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result[0], np.arange(units))
    for model in range(1, models):
        block = similarity[:units, model * units : (model + 1) * units]
        best = max(
            itertools.permutations(range(units)),
            key=lambda perm: block[list(perm), range(units)].sum(dtype=float),
        )
        np.testing.assert_array_equal(result[model], best)


@pytest.mark.parametrize("models", [2, 3])
def test_align_reaches_the_optimum_of_scipy(models):
    similarity = draw(0, models, 40)
    result = align(similarity, models)
    for model in range(1, models):
        block = similarity[:40, model * 40 : (model + 1) * 40].astype(float)
        optimum = linear_sum_assignment(block, maximize=True)
        np.testing.assert_array_equal(np.sort(result[model]), np.arange(40))
        assert block[result[model], np.arange(40)].sum() == block[optimum].sum()
        np.testing.assert_array_equal(result[model][optimum[1]], optimum[0])


@pytest.mark.parametrize("method", [align, zip_units])
@pytest.mark.parametrize("models", [2, 3])
def test_a_planted_permutation_is_found(models, method):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(9, 50))
    perms = [np.arange(9)] + [generator.permutation(9) for _ in range(models - 1)]
    stacked = np.concatenate([features[perm] for perm in perms])
    stacked += 0.05 * generator.normal(size=stacked.shape)
    similarity = np.corrcoef(stacked)
    similarity = (similarity + similarity.T) / 2
    np.testing.assert_array_equal(method(similarity, models), perms)


def test_align_looks_at_no_similarity_inside_a_model():
    similarity = draw(0, 2, 6)
    other = similarity.copy()
    other[:6, :6] = other[6:, 6:] = other[6:, :6] = 0
    np.testing.assert_array_equal(align(similarity, 2), align(other, 2))


@pytest.mark.parametrize("method", [align, zip_units])
def test_the_similarity_is_not_written_to(method):
    similarity = draw(0, 2, 6)
    before = similarity.copy()
    method(similarity, 2)
    np.testing.assert_array_equal(similarity, before)


@pytest.mark.parametrize("method", [align, zip_units])
def test_whole_numbers_are_similarities_too(method, monkeypatch):
    similarity = np.array([[9, 1, 5, 2], [1, 9, 3, 7], [5, 3, 9, 0], [2, 7, 0, 9]])
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    result = method(similarity, 2)
    np.testing.assert_array_equal(result, [[0, 1]] * 2)


@pytest.mark.parametrize(("path", "name"), rows("align"))
def test_align_agrees_with_recorded_matchings(path, name):
    similarity, expected = read(path, name)
    assert partition(align(similarity, len(expected))) == partition(expected)


@pytest.mark.parametrize(("path", "name"), rows("zip_a=.*"))
def test_zip_agrees_with_recorded_matchings(path, name):
    similarity, expected = read(path, name)
    a, b = map(float, re.findall(r"=([\d.]+)", name))
    result = zip_units(similarity, len(expected), a, b)
    assert partition(result) == partition(expected)


@pytest.mark.parametrize("kind", ["random", "ties", "negative", "constant"])
@pytest.mark.parametrize("a", [0.0, 1e-4, 0.5, 1.0])
@pytest.mark.parametrize("b", [0.0, 0.3, 0.5, 1.0])
def test_zip_is_its_definition(kind, a, b):
    for models, units in ((2, 1), (2, 2), (2, 9), (3, 1), (3, 2), (3, 7), (4, 5)):
        for seed in range(3):
            similarity = draw(seed, models, units, kind)
            expected = zip_by_definition(similarity, models, a, b)
            result = zip_units(similarity, models, a, b)
            np.testing.assert_array_equal(result, expected)


def test_a_decay_that_makes_a_tie_counts_for_the_earlier_pair():
    """Units 1 and 3 merge; 0 is then as similar to them (-1 / 2) as to 2."""
    similarity = np.float32(
        [
            [1, -1, -0.5, -1],
            [-1, 1, -0.5, -0.25],
            [-0.5, -0.5, 1, -2],
            [-1, -0.25, -2, 1],
        ]
    )
    np.testing.assert_array_equal(zip_units(similarity, 2), [[0, 0], [1, 0]])


@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("b", [0.0, 0.25, 1.0])
def test_a_zip_is_a_partition_within_its_budget(models, kind, b):
    units = 24
    for seed in range(4):
        result = zip_units(draw(seed, models, units, kind), models, 0.5, b)
        assert result.dtype == np.int32
        assert result.shape == (models, units)
        first_members = np.unique(result, return_index=True)
        np.testing.assert_array_equal(first_members[0], np.arange(units))
        assert (np.diff(first_members[1]) > 0).all()
        spent = [0] * models
        for merged in range(units):
            owners = np.nonzero(result == merged)[
                0
            ]  # the lowest model is the cluster's
            spent[owners.min()] += (owners == owners.min()).sum() - 1
        assert max(spent) <= math.floor(b * ((models - 1) * units // models))


@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("models", [2, 3])
def test_without_a_budget_every_merged_unit_has_one_unit_of_model_0(models, kind):
    result = zip_units(draw(0, models, 16, kind), models, b=0.0)
    np.testing.assert_array_equal(result[0], np.arange(16))


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("b", [0.0, 0.5, 1.0])
def test_zip_does_not_depend_on_the_order_of_units(models, b):
    generator = np.random.default_rng(models)
    for a in (0.3, 0.5, 1.0):
        s = generator.uniform(-1, 1, (models * 12, models * 12))
        s = s + s.T
        order = np.concatenate(
            [12 * model + generator.permutation(12) for model in range(models)]
        )
        result = zip_units(s, models, a, b).ravel()
        other = zip_units(s[order][:, order], models, a, b)
        assert partition(other) == partition(result[order])


def test_one_model_stays_as_it_is():
    for method in (align, zip_units):
        np.testing.assert_array_equal(method(draw(0, 1, 5), 1), [np.arange(5)])


def test_no_units_are_no_work():
    for method in (align, zip_units):
        assert method(np.zeros((0, 0)), 2).shape == (2, 0)


@pytest.mark.parametrize("method", [align, zip_units])
@pytest.mark.parametrize(("shape", "models"), [((5, 5), 2), ((4, 6), 2), ((4, 4), 0)])
def test_a_similarity_that_does_not_divide_is_refused(
    method, shape, models, monkeypatch
):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    text = (
        f"{method.__name__}: expected a similarity of shape (models*units, "
        f"models*units) for {models} models, got {shape}. Stack the units of all "
        "models."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        method(np.zeros(shape), models)


@pytest.mark.parametrize("method", [align, zip_units])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_similarity_that_is_not_finite_is_refused(method, bad):
    similarity = draw(0, 2, 2)
    similarity[0, 3] = similarity[3, 0] = bad
    text = (
        f"{method.__name__}: expected finite similarities, got 2 of 16 that are NaN or "
        "infinite. Give units that never change similarity 0."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        method(similarity, 2)


@pytest.mark.parametrize("place", [(0, 3), (3, 0), (299, 1), (130, 140)])
def test_zip_refuses_a_similarity_that_is_not_symmetric(place):
    similarity = draw(0, 2, 150 if max(place) > 3 else 2)
    similarity[place] += 0.5
    text = (
        "zip_units: expected a symmetric similarity, got one that is not. Pass "
        "(similarity + similarity.T) / 2."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        zip_units(similarity, 2)


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("value", [-0.1, 1.5, math.nan])
def test_zip_refuses_a_share_outside_0_to_1(name, value):
    text = (
        f"zip_units: expected {name} in [0, 1], got {value}. Leave it out for the "
        "usual value."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        zip_units(draw(0, 2, 2), 2, **{name: value})


def test_the_benchmark_runs_and_finds_equal_results(monkeypatch, capsys):
    path = ROOT / "scripts" / "bench_matching.py"
    spec = importlib.util.spec_from_file_location("bench_matching", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    options = ["--sizes", "8", "32", "--plain-up-to", "32"]
    monkeypatch.setattr(sys, "argv", ["bench_matching.py", *options])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["8", "32"]
    assert len(lines[2].split()) == 8
    assert lines[4].startswith("zip takes time proportional to units^")
