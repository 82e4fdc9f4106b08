"""The page of fine-tunes runs, prints what it says, and names every option there is."""

import re
from pathlib import Path

import jax
import pytest

from jmudsc.finetunes.methods import FINETUNE_METHODS

PAGE = (Path(__file__).parents[2] / "docs" / "finetunes.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def test_the_page_runs_and_prints_what_it_says(capsys):
    scope = {}
    with jax.numpy_rank_promotion("allow"):
        for block in blocks("python"):
            exec(block, scope)
    assert capsys.readouterr().out == "".join(blocks("text"))


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
