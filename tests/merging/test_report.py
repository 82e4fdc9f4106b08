import dataclasses

import numpy as np
import pytest

from jmudsc.merging.report import report
from jmudsc.merging.result import MergeResult
from jmudsc.merging.save_result import record_of
from jmudsc.spec.axes import Fixed, Units
from jmudsc.spec.permutation_spec import labels_of, PermutationSpec


def result(assignment):
    axes = {"w": (Fixed(3), Units("P_0", 4))}
    spec = PermutationSpec(axes, labels_of(axes, {"P_0": 4}, {}))
    recipe = {"method": "mudsc-zip", "alpha": 0.5, "weights": [0.5, 0.5]}
    return MergeResult({}, spec, {"P_0": np.array(assignment)}, (0.25, 0.75), recipe)


def test_a_report_tells_what_became_of_the_units():
    text = report(result([[0, 1, 2, 3], [0, 1, 3, 2]]))
    assert "- method: mudsc-zip\n- alpha: 0.5\n- weights: 0.5, 0.5\n" in text
    assert "sweeps: 2, the best was sweep 2 with mean similarity 0.7500" in text
    row = [line for line in text.splitlines() if line.startswith("| P_0")]
    assert row[0].split() == "| P_0 | 4 | - | 75% | 100% | 0% |".split()


@pytest.mark.parametrize(
    ("method", "shown"), [("weight-zip", False), ("mudsc-align", True)]
)
def test_an_alpha_is_told_where_it_was_used(method, shown):
    merged = result([[0, 1, 2, 3], [0, 1, 3, 2]])
    recipe = {**merged.recipe, "method": method}
    text = report(dataclasses.replace(merged, recipe=recipe))
    assert ("- alpha: 0.5\n" in text) == shown
    assert f"- method: {method}\n" in text


def test_a_report_tells_units_of_one_model_merged_with_each_other():
    text = report(result([[0, 0, 1, 2], [1, 2, 3, 3]]))
    row = next(line for line in text.splitlines() if line.startswith("| P_0"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[-2:] == ["50%", "50%"]


def test_a_report_tells_the_seconds_of_stages_and_the_provenance_does_not():
    plain = result([[0, 1, 2, 3], [0, 1, 3, 2]])
    timed = dataclasses.replace(plain, seconds={"statistics": 1.234, "matching": 0.5})
    assert "- seconds: statistics=1.23, matching=0.5\n" in report(timed)
    assert "seconds" not in report(plain)
    stored = [
        dataclasses.replace(x, assignment={"P_0": x.assignment["P_0"].astype(np.int32)})
        for x in (plain, timed)
    ]
    one, two = (record_of(x, {}, {}).content for x in stored)
    assert one == two


def test_a_report_tells_what_was_done_after_averaging():
    changes = {"a/kernel": "refit", "a/bias": "refit", "b": "is used more than once"}
    plain = result([[0, 1, 2, 3], [0, 1, 3, 2]])
    text = report(dataclasses.replace(plain, changes=changes))
    assert text.endswith("\n- refit: a/kernel, a/bias\n- is used more than once: b\n")
    assert "refit" not in report(plain)
