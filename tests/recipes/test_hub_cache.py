"""Models in the cache of the Hub: found by name, never fetched."""

import pytest

from jmudsc.recipes.hub_cache import cached


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return tmp_path / "hub"


def snapshot(hub, revision):
    folder = hub / "models--org--net" / "snapshots" / revision
    folder.mkdir(parents=True)
    return folder


def test_the_main_revision_counts(hub):
    assert cached("org/net") is None
    only = snapshot(hub, "old")
    assert cached("org/net") == only
    new = snapshot(hub, "new")
    assert cached("org/net") is None  # which of the two is not known
    refs = hub / "models--org--net" / "refs"
    refs.mkdir()
    (refs / "main").write_text("new\n")
    assert cached("org/net") == new
    (refs / "main").write_text("gone")
    assert cached("org/net") is None


@pytest.mark.parametrize("name", ["net", "org/net/x", "/org/net", "org\\net", "a/b c"])
def test_other_names_are_none_of_the_hub(name, hub):
    snapshot(hub, "only")
    assert cached(name) is None


def test_another_place_of_the_cache(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    snapshot(hub, "only")
    assert cached("org/net") is None
    assert cached("org/net") != snapshot(tmp_path / "elsewhere", "r")
    assert cached("org/net") == tmp_path / "elsewhere/models--org--net/snapshots/r"
