"""The documentation of recipes knows every key, and the example in the schema reads."""

import re
from pathlib import Path

import pytest
import yaml

from jmudsc import FINETUNE_METHODS
from jmudsc.merging.options import MergeOptions, OPTIONS
from jmudsc.recipes import schema
from jmudsc.recipes.families import FINETUNED, MATCHED
from jmudsc.recipes.reader import keys_of, parse_recipe
from jmudsc.recipes.source import SOURCE_KEYS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "checkpoints.md").read_text().partition("\n## Recipes\n")[2]
ROWS = {
    match[1]: [cell.strip() for cell in match[2].split(" | ")]
    for match in re.finditer(r"^\| `(\w+)` \| (.*) \|$", TEXT, re.M)
}
PLAIN = [name for name, option in OPTIONS.items() if option.in_recipe == "value"]


def test_every_key_of_a_recipe_is_documented_and_no_other():
    assert set(ROWS) == set(keys_of(MATCHED)) | {"base", "model"}


def test_every_key_of_fine_tunes_is_documented_and_no_other():
    page = (ROOT / "docs" / "finetunes.md").read_text()
    text = page.partition("\n## As a recipe\n")[2]
    rows = set(re.findall(r"^\| `(\w+)` \| .* \|$", text, re.M))
    options = {name for row in FINETUNE_METHODS.values() for name in row.by_name}
    others = {"lambda", "int8_mask"}  # in the text
    assert rows == set(keys_of(FINETUNED)) - options - others
    assert all(f"`{name}`" in page for name in options | others)


@pytest.mark.parametrize("key", SOURCE_KEYS)
def test_every_key_of_a_model_is_documented(key):
    assert f"`{key}`" in ROWS["models"][0]


@pytest.mark.parametrize("name", PLAIN)
def test_the_default_of_an_option_is_the_one_documented(name):
    default, documented = getattr(MergeOptions(), name), ROWS[name][-1].strip("`")
    if default is None or default == ():
        assert documented in ("none", "equal")
    else:
        assert documented == str(default)


def test_the_example_of_the_schema_is_a_recipe():
    example, other = re.findall(r"```yaml\n(.*?)```", schema.__doc__, re.S)
    assert parse_recipe(yaml.safe_load(other)).options.method == "ties"
    recipe = parse_recipe(yaml.safe_load(example))
    assert [source.path for source in recipe.models][2] == "runs/c.safetensors"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("merge-*.yaml")), ids=lambda path: path.stem
)
def test_the_recipes_that_come_along_can_be_read(path):
    assert parse_recipe(yaml.safe_load(path.read_text())).output.endswith("/merged")
