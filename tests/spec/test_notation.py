import re

import pytest
from axis_table import AXES

from jmudsc import Site, Units
from jmudsc.spec.axes import map_atoms
from jmudsc.spec.notation import parse_axis, read_table


def without_sizes(axis):
    return map_atoms(
        axis, lambda atom: Units(atom.label, 0) if isinstance(atom, Units) else atom
    )


@pytest.mark.parametrize("axis", [row[0] for row in AXES.values()], ids=AXES)
def test_what_is_printed_is_read_back(axis):
    assert parse_axis(str(axis)) == without_sizes(axis)


@pytest.mark.parametrize("axis", [row[0] for row in AXES.values()], ids=AXES)
def test_blanks_do_not_matter(axis):
    spaced = " ".join(re.findall(r"\w+|\W", str(axis)))
    assert parse_axis(f" {spaced} ") == without_sizes(axis)


@pytest.mark.parametrize(
    "name", ["P_0", "P_blockgroups_0/blocks_0_inner", "layer1.0-in", "0a", "λ", "a:b"]
)
def test_a_label_may_have_any_name_without_blanks_and_signs(name):
    assert parse_axis(name) == Units(name, 0)


def test_parentheses_around_one_thing_are_nothing():
    assert parse_axis("((P_0))") == Units("P_0", 0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'expected a label, a length, "(" or "{" at character 1, got the end'),
        ("4*", 'expected a label, a length, "(" or "{" at character 3, got the end'),
        ("4**P", 'expected a label, a length, "(" or "{" at character 3, got "*"'),
        ("P_1 P_2", 'expected "+", "*" or the end at character 5, got "P_2"'),
        ("P_1)", 'expected "+", "*" or the end at character 4, got ")"'),
        ("(a+b*c", 'expected "+", "*" or ")" at character 7, got the end'),
        ("a,b", 'expected "+", "*" or the end at character 2, got ","'),
        ("3#a", 'expected a number at character 3, got "a"'),
        ("{a|b", 'expected "+", "*", "|" or "}" at character 5, got the end'),
        ("{a|b}", 'expected "#" and the number of an axis at character 6, got the end'),
        ("a#0", 'expected "+", "*" or the end at character 2, got "#"'),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(text, problem):
    message = f'"{text}": {problem}'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_axis(text)


TEXT = """\
3 labels on 3 of 4 leaves

label    units  per unit of
heads        3  (fixed: is frozen by "heads")
inner        4  S_0 heads
rest         2  heads  (fixed: is (so) odd)

leaf        axes
out kernel  heads, inner, 5
value/bias  heads*inner  (running statistic)
scale         (running statistic)
step

fixed         why
out kernel:2  meets an  output
"""


def test_every_table_of_a_printed_spec_is_read():
    table = read_table("here", TEXT)
    assert table.rows == {
        "out kernel": "heads, inner, 5",
        "value/bias": "heads*inner",
        "scale": "",
        "step": "",
    }
    assert table.sizes == {"heads": 3, "inner": 4, "rest": 2}
    assert table.outer == {
        "heads": (),
        "inner": ("S_0", "heads"),
        "rest": ("heads",),
    }
    assert table.held == {"heads": 'is frozen by "heads"', "rest": "is (so) odd"}
    assert table.fixed == {Site("out kernel", 2): "meets an  output"}


def test_how_far_a_printed_spec_is_indented_does_not_matter():
    lines = [f"    {line}\r" for line in ("", *TEXT.splitlines())]
    assert read_table("here", "\n".join(lines)) == read_table("here", TEXT)


def test_only_the_leaves_are_needed():
    assert read_table("here", "leaf  axes\na  P_0").rows == {"a": "P_0"}


def refused(text, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_table("here", text)


def test_lines_that_are_no_part_of_a_printed_spec_are_listed():
    refused(
        "hello\nlabel  units  per unit of\nP_0 eight\nleaf  axes\na  P_0\na  P_0\n"
        "fixed  why\nb  is an input",
        "here: expected lines as print(spec) shows them, got others:\n"
        '  line 1: "hello" is in no table\n'
        '  line 3: "P_0 eight" is no row of its table\n'
        '  line 6: "a" has a row already\n'
        '  line 8: "b  is an input" is no row of its table\n'
        "Copy all that print(spec) shows.",
    )


def test_a_text_without_leaves_is_refused():
    refused(
        "spec.txt",
        'here: expected a text with a table that starts with "leaf  axes", got one '
        "without. Pass all that print(spec) shows, or a mapping of leaf paths to axes.",
    )
