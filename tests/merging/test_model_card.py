"""The card of a merged model: front matter that the Hub reads, no more than known."""

import dataclasses

import pytest
import yaml
from checkpoint_writers import result_of

from jmudsc.merging.model_card import hub_name, model_card


def front_of(card):
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_card_tells_what_was_merged_and_how(tmp_path):
    cached = tmp_path / "models--org--base-7b" / "snapshots" / "0a1b"
    result = dataclasses.replace(result_of({}), recipe={"method": "ties", "models": 2})
    parents = (cached, "org/a", tmp_path / "own", "org/a")
    front, body = front_of(model_card(result, parents, {}, {}))
    assert front == {
        "base_model": ["org/base-7b", "org/a"],
        "library_name": "transformers",
        "tags": ["merge", "jmudsc"],
    }
    assert "Merged without training by `ties`, with jmudsc " in body
    assert "- [org/base-7b](https://huggingface.co/org/base-7b)\n" in body
    assert "- `own`\n" in body
    assert str(tmp_path) not in body
    assert "```yaml\nmethod: ties\nmodels: 2\n```" in body


def test_a_recipe_is_shown_without_its_comments():
    notes = {"recipe.yaml": "# Paths are relative to /home/me\nmethod: linear\n"}
    result = dataclasses.replace(result_of({}), recipe={"method": {"*": "linear"}})
    front, body = front_of(model_card(result, (), {"_class_name": "UNet"}, notes))
    assert "base_model" not in front
    assert front["library_name"] == "diffusers"
    assert "Merged without training by `several methods`" in body
    assert "```yaml\nmethod: linear\n```" in body
    assert "/home/me" not in body


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        ("org/model.v1", "org/model.v1"),
        ("/data/models/org/model", None),
        ("./model", None),
        ("../model", None),
        ("~/model", None),
        ("model", None),
        ("hub/models--a-b--c.d/snapshots/0", "a-b/c.d"),
    ],
)
def test_names_of_the_hub_are_told_from_paths(parent, name):
    assert hub_name(parent) == name


def test_a_path_that_is_there_is_no_name(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name("org/model") is None
