"""Tables as Markdown."""

import pytest

from jmudsc.tables import mean_and_std, table


def test_a_table_is_aligned_markdown():
    text = table(["method", "joint"], [["average", "0.4"], ["mudsc-zip", "0.92"]])
    assert text == (
        "| method    | joint |\n"
        "|:----------|------:|\n"
        "| average   |   0.4 |\n"
        "| mudsc-zip |  0.92 |"
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.5], "0.500"), ([0.5, 0.7], "0.600 ± 0.141"), ([1.0, 1.0], "1.000 ± 0.000")],
)
def test_a_standard_deviation_is_shown_where_there_are_several_values(values, expected):
    assert mean_and_std(values) == expected
