"""A flipped bit or a cut file: no load is silent, each gives one sentence."""

from collections import Counter

import pytest
from checkpoint_checks import script

DAMAGE = script("damage_checkpoints")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return DAMAGE.saved(tmp_path_factory.mktemp("saved"))


@pytest.mark.parametrize("start", range(0, 240, 40))
def test_no_damage_is_silent(start, places):
    trials = [DAMAGE.trial(places, seed) for seed in range(start, start + 40)]
    assert [x for x in trials if x[2] != "sentence"] == []


def test_the_damage_is_of_both_kinds_in_all_formats(places):
    trials = [DAMAGE.trial(places, seed) for seed in range(80)]
    kinds = Counter((name, "flipped" in done) for name, done, _ in trials)
    assert len(kinds) == 2 * len(places)


def test_an_undamaged_checkpoint_is_counted_as_silent(places):
    for name, folder in places.items():
        path = DAMAGE.path_of(name, folder)
        assert DAMAGE.outcome(path, DAMAGE.tree()) == "silent, the same bits"
