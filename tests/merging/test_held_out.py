"""Which batches are held out depends on their place and owner alone."""

import pytest

from jmudsc.merging.held_out import is_held, Picked, split


class Stream:
    """Batches that can be gone through again, of a number that nobody tells."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.3, 0.5, 0.9])
def test_the_share_is_that_of_every_number_of_batches_rounded(share):
    for count in range(1, 60):
        held = sum(is_held(number, share) for number in range(count))
        assert abs(held - share * count) <= 0.5 + 1e-6


@pytest.mark.parametrize("kind", [list, tuple, Stream])
@pytest.mark.parametrize("count", [5, 10, 23])
def test_every_batch_is_in_one_of_two_parts_in_order(kind, count):
    batches = Stream(count) if kind is Stream else kind(range(count))
    parts = split(batches, 0.1)
    assert parts.is_held_out
    used, judged = list(parts.used), list(parts.judged)
    assert judged == [n for n in range(count) if n % 10 == 4]
    assert used == [n for n in range(count) if n % 10 != 4]
    assert list(parts.used) == used
    assert isinstance(parts.used, Picked if kind is Stream else list)


@pytest.mark.parametrize("count", [1, 4])
def test_of_few_batches_none_is_held_out(count):
    batches = list(range(count))
    parts = split(batches, 0.1)
    assert not parts.is_held_out
    assert parts.used is batches
    assert parts.judged is batches


def test_without_a_share_nothing_is_judged():
    batches = list(range(20))
    assert split(batches, None, [0] * 20).used is batches
    assert list(split(batches, None).judged) == []
    assert split(batches, 0.0).used is batches
    assert split(None, 0.1).used is None


@pytest.mark.parametrize("kind", [list, Stream])
def test_every_owner_keeps_and_gives_its_share(kind):
    owners = [0] * 5 + [1] * 15
    batches = list(range(20)) if kind is list else Stream(20)
    parts = split(batches, 0.1, owners)
    assert list(parts.judged) == [4, 9, 19]
    assert parts.owners_judged == (0, 1, 1)
    assert parts.owners == (0,) * 4 + (1,) * 13
    assert [owners[n] for n in parts.used] == list(parts.owners)


def test_where_an_owner_has_too_few_nothing_is_held_out():
    parts = split(list(range(20)), 0.1, [0] * 17 + [1] * 3)
    assert not parts.is_held_out
    assert parts.owners == parts.owners_judged == (0,) * 17 + (1,) * 3
