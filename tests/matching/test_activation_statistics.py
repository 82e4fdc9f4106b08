"""A budget decides how often batches are read and what is held, and no other bit."""

import gc
import os
import re
import time
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

import jmudsc
from jmudsc import collect, infer_spec, match
from jmudsc.lazy import LazyArray
from jmudsc.matching import activation_statistics, similarity
from jmudsc.matching.moment_cache import BUDGET, budget_beside
from jmudsc.matching.moment_store import MomentStore
from jmudsc.matching.passes import bytes_of_moments, passes_within

NETS = ("mlp", "cnn", "attention", "recurrent")


class Read:
    """Batches that count how often all of them were read."""

    def __init__(self, batches):
        self.batches = batches
        self.times = 0

    def __iter__(self):
        yield from self.batches
        self.times += 1


def parts_of(name):
    net = tiny.NETS[name]
    models = [tiny.variables(net, seed) for seed in range(2)]
    batches = [tiny.batch(net, seed, size) for seed, size in ((0, 12), (1, 12), (2, 5))]
    spec = infer_spec(net.apply_fn, models[0], batches[0])
    return spec, net.apply_fn, models, batches


def sizes_of(spec, moments):
    sizes = {name: bytes_of_moments(spec, name, 2) for name in moments}
    actual = {n: m.mean.nbytes + m.comoment.nbytes for n, m in moments.items()}
    assert sizes == actual
    return sizes


def budgets_of(sizes):
    whole = 2 * sum(sizes.values())
    return 0, 2 * max(sizes.values()), whole // 2, whole - 1, whole


def assert_same_moments(found, expected):
    assert found.keys() == expected.keys()
    for name, moments in expected.items():
        assert found[name].count == moments.count
        np.testing.assert_array_equal(found[name].mean, moments.mean)
        np.testing.assert_array_equal(
            np.asarray(found[name].comoment), moments.comoment
        )


@pytest.mark.parametrize("name", NETS)
def test_a_budget_changes_no_bit_and_is_kept(name, monkeypatch):
    spec, apply_fn, models, batches = parts_of(name)
    expected = collect(spec, apply_fn, models, batches)
    sizes = sizes_of(spec, expected)
    held = []
    added = activation_statistics._added

    def watched(total, units, shares):
        found = added(total, units, shares)
        batch = {n: bytes_of_moments(spec, n, 2) for n in units[0]}
        held.append(sum(x.nbytes for x in jax.tree.leaves(found[0])))
        held[-1] += sum(batch.values())
        return found

    monkeypatch.setattr(activation_statistics, "_added", watched)
    for budget in budgets_of(sizes):
        held.clear()
        read = Read(batches)
        found = collect(spec, apply_fn, models, read, budget=budget)
        assert_same_moments(found, expected)
        assert read.times == len(passes_within(sizes, budget))
        assert max(held) <= max(budget, 2 * max(sizes.values()))
        on_disk = {isinstance(m.comoment, LazyArray) for m in found.values()}
        assert on_disk == {read.times > 1}
    assert read.times == 1  # all of them have room


@pytest.mark.parametrize("budget", [0, 100, 1000, 10**6, None])
def test_passes_are_few_and_within_the_budget(budget):
    draw = np.random.default_rng(0)
    for count in (0, 1, 2, 20):
        sizes = {str(n): int(draw.integers(1, 200)) for n in range(count)}
        passes = passes_within(sizes, budget)
        assert sorted(name for group in passes for name in group) == sorted(sizes)
        taken = [2 * sum(sizes[name] for name in group) for group in passes]
        if budget is None:
            assert len(passes) == 1
            continue
        for group, bytes_taken in zip(passes, taken, strict=True):
            assert bytes_taken <= budget or len(group) == 1
        half_empty = [x for x in taken if x <= budget / 2]
        assert len(half_empty) <= 1  # or two of them would be one


@pytest.mark.parametrize("method", ["activation-zip", "mudsc-align", "mudsc-zip"])
def test_a_merge_within_a_budget_is_the_same(method, key):
    _, apply_fn, models, batches = parts_of("attention")
    options = {"method": method, "key": key}
    expected = jmudsc.merge(apply_fn, models, batches, **options)
    for budget in (0, 3000):
        read = Read(batches)
        found = jmudsc.merge(apply_fn, models, read, budget=budget, **options)
        assert read.times > 1
        assert found.history == expected.history
        for one, two in zip(
            jax.tree.leaves(found.variables),
            jax.tree.leaves(expected.variables),
            strict=True,
        ):
            np.testing.assert_array_equal(one, two)


def test_large_moments_are_correlated_on_the_device_from_disk_too(monkeypatch):
    spec, apply_fn, models, batches = parts_of("mlp")
    monkeypatch.setattr(similarity, "_FEW", 0)
    here, there = (
        collect(spec, apply_fn, models, batches, budget=x) for x in (None, 0)
    )
    for name, moments in here.items():
        expected = similarity.activation_similarity(moments)
        found = similarity.activation_similarity(there[name])
        np.testing.assert_array_equal(found, expected)


class Reads(Mapping):
    """Moments on disk, and how many bytes of them are in memory at the most."""

    def __init__(self, moments):
        self.now = self.most = 0
        self.moments = {
            name: replace(m, comoment=replace(m.comoment, fetch=self.fetch(m.comoment)))
            for name, m in moments.items()
        }

    def fetch(self, lazy):
        def fetch(names):
            array = np.array(lazy.read())
            for _ in range(200):  # the runtime drops arrays a little later
                if not self.now:
                    break
                gc.collect()
                time.sleep(0.01)
            self.now += array.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(array, self.gone, array.nbytes)
            return dict.fromkeys(names, array)

        return fetch

    def gone(self, nbytes):
        self.now -= nbytes

    def __getitem__(self, name):
        return self.moments[name]

    def __iter__(self):
        return iter(self.moments)

    def __len__(self):
        return len(self.moments)


@pytest.mark.parametrize("method", ["activation-align", "mudsc-zip"])
def test_matching_reads_one_label_at_a_time(method, key):
    spec, apply_fn, models, batches = parts_of("attention")
    moments = Reads(collect(spec, apply_fn, models, batches, budget=0))
    assert len(moments) == 3
    found = match(spec, models, moments, method=method, key=key)
    largest = max(m.comoment.nbytes for m in moments.values())
    assert 0 < moments.most <= largest
    expected = match(
        spec,
        models,
        collect(spec, apply_fn, models, batches),
        method=method,
        key=key,
    )
    for name, rows in expected.assignment.items():
        np.testing.assert_array_equal(found.assignment[name], rows)


def test_what_lies_on_disk_goes_with_what_refers_to_it():
    store = MomentStore()
    moments = store.put(jmudsc.Moments(3, np.ones(4), np.eye(4)))
    np.testing.assert_array_equal(np.asarray(moments.comoment), np.eye(4))
    file = store.file
    assert os.fstat(file.fileno()).st_nlink == 0  # it has no name
    del store
    assert not file.closed
    np.testing.assert_array_equal(moments.comoment.read(), np.eye(4))
    del moments
    gc.collect()
    assert file.closed


def test_a_full_disk_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full = Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: full)
    moments = jmudsc.Moments(1, np.ones(4, "f4"), np.eye(4, dtype="f4"))
    expected = (
        f"collect: expected room for 64 bytes of co-moments in {tmp_path}, got an "
        "error ([Errno 28] No space left on device). Set TMPDIR to a folder on a disk "
        "that has it, or allow more memory."
    )
    with pytest.raises(OSError, match=f"^{re.escape(expected)}$"):
        MomentStore().put(moments)


def test_batches_that_are_read_once_do_not_fit_a_small_budget():
    spec, apply_fn, models, batches = parts_of("mlp")
    expected = (
        "collect: batches: expected an iterable that can be read several times, since "
        "the moments have no room in a budget of 10 bytes, got a list_iterator, which "
        "can be read only once. Pass a list, or a larger budget."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        collect(spec, apply_fn, models, iter(batches), budget=10)
    found = collect(spec, apply_fn, models, iter(batches), budget=10**9)
    assert_same_moments(found, collect(spec, apply_fn, models, batches))


def test_weights_are_remembered_in_what_moments_leave():
    spec, apply_fn, models, batches = parts_of("mlp")
    here, there = (
        collect(spec, apply_fn, models, batches, budget=x) for x in (None, 0)
    )
    held = 2 * sum(m.mean.nbytes + m.comoment.nbytes for m in here.values())
    means = 2 * sum(m.mean.nbytes for m in there.values())
    assert budget_beside(here, None) == BUDGET == budget_beside({}, 10**12)
    assert budget_beside(here, held + 7) == 7
    assert budget_beside(here, held - 1) == 0
    assert budget_beside(there, means + 7) == 7
