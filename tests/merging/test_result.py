"""What a merge says of itself where it is printed."""

import dataclasses
import functools
import re
from html.parser import HTMLParser

import jax
import pytest
import tiny

from jmudsc import merge
from jmudsc.merging.result import MergeResult

NET = tiny.MLP
BATCHES = [tiny.batch(NET, seed, 32) for seed in range(6)]
MODELS = [tiny.variables(NET, seed) for seed in range(2)]
WAYS = {
    "default": {},
    "best": {"method": "best"},
    "separate": {"separate": "c/*", "method": "mudsc-align"},
    "average": {"method": "average", "held_out": None},
}


@functools.cache
def merged(name):
    return merge(NET.apply_fn, MODELS, BATCHES, key=jax.random.key(0), **WAYS[name])


@pytest.mark.parametrize("name", WAYS)
def test_it_is_told_in_ten_lines_that_fit_a_terminal(name):
    lines = repr(merged(name)).splitlines()
    assert lines[0] == "MergeResult"
    assert 4 <= len(lines) <= 10
    assert max(map(len, lines)) <= 100
    assert str(merged(name)) == repr(merged(name))


def test_what_is_told_is_so():
    result = merged("default")
    told = dict(re.findall(r"^  (\w+) +(.*)$", repr(result), re.M))
    count = sum(leaf.size for leaf in result.variables.values())
    leaves = len(result.variables)
    assert told["method"] == "mudsc-zip"
    assert told["variables"] == f"{leaves} leaves, {count:,} entries (float32)"
    verdict = result.verdict
    best = f"parent {verdict.best_parent}"
    ours, theirs = (verdict.networks[n].cosine for n in ("merged", best))
    assert told["verdict"].endswith(
        f"{best}, the best alone (cosine {ours:.3f}, {theirs:.3f}; 32 samples)"
    )
    assert told["similarity"].startswith(f"{max(result.history):.3f}, the best of ")
    assert "networks" not in told
    assert merged("separate").networks
    assert "\n  networks " in repr(merged("separate"))
    assert "\n  comparison " in repr(merged("best"))
    assert "none, since no batches are held out" in repr(merged("average"))


class Cells(HTMLParser):
    """The tags and the texts of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_a_notebook_shows_the_same_as_one_table():
    result = merged("default")
    cells = Cells()
    cells.feed(result._repr_html_())
    assert cells.tags.count("table") == 1
    rows = re.findall(r"^  (\w+) +(.*)$", repr(result), re.M)
    assert cells.texts == [text for row in rows for text in row]


def test_what_is_no_text_of_ours_is_escaped():
    recipe = {"method": "<script>alert(1)</script>", "verdict": "none & nothing"}
    result = dataclasses.replace(merged("average"), recipe=recipe)
    page = result._repr_html_()
    assert "<script>" not in page
    cells = Cells()
    cells.feed(page)
    assert "<script>alert(1)</script>" in cells.texts
    assert "none & nothing" in cells.texts


def test_a_result_of_nothing_is_told_too():
    assert "0 leaves, 0 entries" in repr(MergeResult({}, merged("best").spec, {}))
