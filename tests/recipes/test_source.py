import re

import pytest

from jmudsc.recipes.source import plain_source, read_sources, Source


def test_a_path_alone_is_a_model():
    first, second = read_sources(["a", {"path": "b", "subtree": "params"}])
    assert first == Source("a")
    assert second == Source("b", subtree="params")


def test_models_are_written_as_they_were_read():
    plain = [
        {"path": "a"},
        {
            "path": "b",
            "subtree": ["params", "batch_stats"],
            "batches": {"factory": "m:f", "size": 3},
            "rename": {"*/weight": "*/kernel", "step": None},
            "separator": "",
        },
    ]
    assert [plain_source(source) for source in read_sources(plain)] == plain


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        (
            ["runs/a"],
            "expected a list of two models or more, got ['runs/a']. Write one "
            "checkpoint per line.",
        ),
        ([{"path": "a"}, {}], "entry 1: path: this key is missing."),
        (
            ["a", 3],
            "entry 1: expected a path, or a mapping with the key path, got 3.",
        ),
        (
            ["a", {"path": "b", "subtre": "params"}],
            'entry 1: subtre: there is no such key; did you mean "subtree"?',
        ),
        (
            ["a", {"path": "b", "subtree": 3}],
            "entry 1: subtree: expected a name or a list of names, got 3. Name what of "
            "the checkpoint is the variables.",
        ),
        (
            ["a", {"path": "b", "rename": ["a"]}],
            "entry 1: rename: expected a mapping of patterns to new paths, got ['a']. "
            "Write null in the place of a new path to leave leaves out.",
        ),
    ],
)
def test_wrong_models_are_refused(models, problem):
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        read_sources(models)


def test_all_that_is_wrong_with_models_is_said_at_once():
    models = [{}, {"path": "b", "rename": {"a/*": "b"}, "separator": 1}]
    with pytest.raises(
        ValueError, match=r"^entry 0: path: this key is missing"
    ) as told:
        read_sources(models)
    assert "entry 1: rename: expected as many * on both sides: " in str(told.value)
    assert str(told.value).endswith(
        'entry 1: separator: expected a text to split names at, got 1. Write "" for '
        "none."
    )
