"""The page of fine-tunes names every method and every option there is."""

import re
from pathlib import Path

import pytest

from jmudsc.finetunes.methods import FINETUNE_METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "finetunes.md").read_text()


@pytest.mark.parametrize("name", FINETUNE_METHODS)
def test_the_table_has_a_row_for_every_method_with_its_options(name):
    row = FINETUNE_METHODS[name]
    (line,) = re.findall(rf"^\| `{name}`.*$", PAGE, re.M)
    names, _, options, base, also, source = line.strip("|").split("|")
    expected = [f"`{option.name}` ({option.default})" for option in row.options]
    expected += [] if row.lambda_ is None else [f"`lambda_` ({row.lambda_:g})"]
    assert options.strip() == ", ".join(expected)
    assert all(alias in names for alias in row.aliases)
    assert (
        base.strip()
        == {"needed": "yes", "optional": "if given", "unused": "no"}[row.base]
    )
    assert ("data" in also) == row.needs_data
    assert ("key" in also) == row.is_random
    assert source.strip()
