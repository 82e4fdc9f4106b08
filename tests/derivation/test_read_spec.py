import dataclasses
import functools
import re

import jax
import jaxtyping
import nets
import numpy as np
import pytest
import zoo

from jmudsc import (
    check_spec,
    Fixed,
    freeze,
    infer_spec,
    override,
    Product,
    read_spec,
    Site,
    Units,
)
from jmudsc.spec.axes import Family
from jmudsc.spec.permutation_spec import fixed_sites

# Every network, one form of those slow to trace.
SMALL = [case for case in nets.CASES if case[0] in ("mlp", "vgg_avg")]
LARGE = [("vgg_max", "plain"), ("resnet20", "linen"), ("bottleneck", "nnx")]
CASES = [*zoo.NETS, *SMALL, *LARGE]
SOME = [*zoo.NETS, ("mlp", "nnx"), ("vgg_avg", "linen")]
BY_HAND = "is fixed by hand"


@functools.cache
def net_of(case):
    return zoo.NETS[case]() if isinstance(case, str) else nets.build(*case)


@functools.cache
def spec_of(case):
    if not isinstance(case, str):
        return nets.spec_of(*case)
    net = net_of(case)
    return infer_spec(net.apply_fn, net.variables, net.batch)


def read(rows, net, **options):
    return read_spec(rows, net.apply_fn, net.variables, net.batch, **options)


def same(found, expected):
    """Whether two specs are equal, the order of leaves and labels included."""
    orders = [(list(spec.axes), list(spec.labels)) for spec in (found, expected)]
    return found == expected and orders[0] == orders[1]


def rows_of(spec, print_axis):
    return {
        path: tuple(print_axis(axis) for axis in axes)
        for path, axes in spec.axes.items()
    }


def by_hand(spec):
    fixed = {site: part + BY_HAND for site, part in fixed_sites(spec.axes).items()}
    return dataclasses.replace(spec, fixed=fixed)


# What is printed can be read.


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_printed_spec_is_read_back(case):
    net, spec = net_of(case), spec_of(case)
    assert same(read(str(spec), net), spec)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_a_frozen_spec_is_read_back(case):
    net, spec = net_of(case), spec_of(case)
    spec = freeze(spec, [next(iter(spec.labels)), list(spec.axes)[-1]])
    assert same(read(str(spec), net), spec)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_the_axes_of_a_spec_written_out_make_the_same_spec(case):
    net, spec = net_of(case), spec_of(case)
    held = [name for name, label in spec.labels.items() if label.fixed]
    found = read(
        rows_of(spec, str),
        net,
        parents={name: label.parents for name, label in spec.labels.items()},
        sizes={name: label.size for name, label in spec.labels.items()},
    )
    for name in held:
        label = dataclasses.replace(found.labels[name], fixed=spec.labels[name].fixed)
        found = dataclasses.replace(found, labels={**found.labels, name: label})
    assert found == by_hand(spec)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_axis_objects_make_the_same_spec_without_sizes(case):
    net, spec = net_of(case), spec_of(case)
    parents = {name: label.parents for name, label in spec.labels.items()}
    found = read(rows_of(spec, lambda axis: axis), net, parents=parents)
    assert found.axes == spec.axes


def test_a_printed_spec_may_be_changed_before_it_is_read():
    net = nets.build("mlp", "linen")
    text = str(nets.spec_of("mlp", "linen"))
    text = re.sub(r"(fc2/kernel +)P_1, 3", r"\1P_1, out", text)
    text = re.sub(r"(fc2/bias +)3", r"\1out", text)
    spec = read(text, net)
    assert list(spec.labels) == ["P_0", "P_1", "out"]
    assert spec.labels["out"].sites == (
        Site("params/fc2/bias", 0),
        Site("params/fc2/kernel", 1),
    )
    assert spec.fixed == {Site("params/fc0/kernel", 0): "meets an input of the network"}


def test_a_label_taken_off_all_leaves_of_a_text_is_gone_from_it():
    net = net_of("experts")
    text = str(spec_of("experts")).replace(", P_1", ", 5")
    spec = read(text, net)
    assert list(spec.labels) == ["P_0"]
    assert spec.fixed[Site("up", 2)] == spec.fixed[Site("down", 1)] == BY_HAND


# Rows written by hand.


GIT_RE_BASIN = {
    "fc0/kernel": (None, "P_0"),
    "fc0/bias": ("P_0",),
    "fc1/kernel": ("P_0", "P_1"),
    "fc1/bias": ("P_1",),
    "fc2/kernel": ("P_1", None),
    "fc2/bias": (None,),
}


@pytest.mark.parametrize("form", ["plain", "linen"])
def test_the_notation_of_git_re_basin_is_read_as_it_is(form, key):
    net = nets.build("mlp", form)
    spec = read(GIT_RE_BASIN, net)
    assert spec == by_hand(nets.spec_of("mlp", form))
    check_spec(spec, net.apply_fn, net.variables, net.batch, key=key)


@pytest.mark.parametrize(
    "row",
    [
        "4*P_2, P_3",
        "4 * P_2 ,P_3",
        ["4*P_2", "P_3"],
        (Product((Fixed(4), Units("P_2", 8))), "P_3"),
        (Product((Fixed(4), Units("P_2", 8))), Units("P_3", 8)),
    ],
    ids=str,
)
def test_a_row_may_be_text_or_an_entry_per_axis(row):
    spec = nets.spec_of("vgg_avg", "plain")
    assert override(spec, {"fc0/kernel": row}) == spec


@pytest.mark.parametrize("row", ["P_1, 3", "P_1, None", ("P_1", 3), ("P_1", "3")])
def test_an_axis_that_stays_is_its_length_or_none(row):
    net = nets.build("mlp", "plain")
    rows = {**GIT_RE_BASIN, "fc2/kernel": row}
    assert read(rows, net) == read(GIT_RE_BASIN, net)


def test_labels_are_in_the_order_in_which_they_are_written():
    net = nets.build("mlp", "plain")
    rows = dict(reversed(GIT_RE_BASIN.items()))
    assert list(read(rows, net).labels) == ["P_1", "P_0"]
    assert list(read(rows, net).axes) == sorted(net.variables)


def test_shapes_are_enough_to_read_a_spec():
    net = nets.build("mlp", "linen")
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (net.variables, net.batch)
    )
    assert read_spec(GIT_RE_BASIN, net.apply_fn, *shapes) == read(GIT_RE_BASIN, net)


# The sizes of labels.


def parts(**shapes):
    """A net that only has leaves of these shapes."""
    leaves = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return nets.Net(lambda v, x: x, leaves, np.ones(2, np.float32))


def sizes_of(spec):
    return {name: label.size for name, label in spec.labels.items()}


def test_sizes_follow_one_from_the_other():
    net = parts(a=(24,), b=(12,), c=(7,), d=(10,), e=(3,), f=(3, 14))
    rows = {
        "a": "r*s*s",
        "b": "p*q",
        "c": "p+q",
        "d": "t+t",
        "e": "p",
        "f": "3#0, 2*{p+q|u}#0",
    }
    rows |= {"f": "3#0, 2*{p+q|u|t+2}#0", "a": "r*(s+s)"}
    spec = read({**rows, "a": "r*(p+p)"}, net)
    assert sizes_of(spec) == {"r": 4, "p": 3, "q": 4, "t": 5, "u": 7}


def test_a_product_of_two_labels_needs_the_size_of_one():
    net, spec = net_of("group norm"), spec_of("group norm")
    rows = rows_of(spec, str)
    message = (
        "read_spec: expected shapes that tell the units of every label, got:\n"
        "  params/conv0/bias:0 has length 12 and is P_0*P_1\n"
        "  params/conv0/kernel:3 has length 12 and is P_0*P_1\n"
        "  params/conv1/kernel:2 has length 12 and is P_0*P_1\n"
        "  params/norm/bias:0 has length 12 and is P_0*P_1\n"
        "  params/norm/scale:0 has length 12 and is P_0*P_1\n"
        'Pass sizes={"label": units} for some of them.'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(rows, net)
    found = read(rows, net, parents={"P_1": "P_0"}, sizes={"P_0": 4})
    assert found == by_hand(spec)


def test_lengths_that_disagree_are_listed_with_the_axis_that_told_the_size():
    net = nets.build("mlp", "plain")
    rows = {**GIT_RE_BASIN, "fc1/kernel": "P_1, P_0", "fc2/kernel": "2*P_1, 4"}
    message = (
        "read_spec: expected axes as long as what the rows put on them, got:\n"
        "  fc1/kernel:1 has length 7, but P_0 has 8; P_0 has 8 by fc0/kernel:1\n"
        "  fc1/bias:0 has length 7, but P_1 has 8; P_1 has 8 by fc1/kernel:0\n"
        "  fc2/kernel:0 has length 7, but 2*P_1 has 16; P_1 has 8 by fc1/kernel:0\n"
        "  fc2/kernel:1 has length 3, the row says 4\n"
        "Correct these rows, or those that they disagree with."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(rows, net)


def test_a_length_that_no_size_makes_is_refused():
    message = (
        "read_spec: expected axes as long as what the rows put on them, got:\n"
        "  a:0 has length 10, which 4*p cannot have\n"
        "  a:1 has length 2, which q+3 cannot have\n"
        "Correct these rows, or those that they disagree with."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read({"a": "4*p, q+3"}, parts(a=(10, 2)))


def test_a_size_in_a_label_table_is_held_against_the_shapes():
    net = nets.build("mlp", "linen")
    text = re.sub(r"P_1( +)7", r"P_1\g<1>6", str(nets.spec_of("mlp", "linen")))
    with pytest.raises(ValueError, match=r"fc1/bias:0 has length 7, but P_1 has 6\n"):
        read(text, net)


def test_axes_in_braces_need_an_axis_to_run_over():
    net = parts(a=(3, 4), b=(2, 4))
    message = (
        "read_spec: expected a fixed axis for every pair of braces to run over, got:\n"
        "  a has {p|q}#0, but no axis 2#0\n"
        "  b has {p|q}#1, but no axis 2#1\n"
        "Mark the fixed axis with as many positions as there are axes in the braces."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read({"a": "3#0, {p|q}#0", "b": "2#0, {p|q}#1"}, net)
    spec = read({"a": "3, p", "b": "2#0, {p|q}#0"}, net)
    assert spec.axes["b"][1] == Family(0, (Units("p", 4), Units("q", 4)))


# Rows that are refused.


def refused(message, rows, net=None, **options):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read(rows, net or nets.build("mlp", "linen"), **options)


def test_rows_of_no_leaf_are_listed_with_the_nearest_name():
    rows = {**GIT_RE_BASIN, "fc0/kernal": "6, P_0", "params/fc1/bia": "P_1", "x": "3"}
    refused(
        "read_spec: expected rows about one leaf each, got others:\n"
        '  "fc0/kernal" is no leaf; did you mean "fc0/kernel"?\n'
        '  "params/fc1/bia" is no leaf; did you mean "params/fc1/bias"?\n'
        '  "x" is no leaf\n'
        "Name leaves by their paths.",
        rows,
    )


def test_a_name_may_lack_the_first_part_of_the_path_of_one_leaf_only():
    net = parts(**{"a/w": (2,), "b/w": (2,), "a/c/w": (2,), "w": (2,), "a/v": (2,)})
    spec = read({"w": "p", "a/w": "q", "b/w": "r", "c/w": "s", "v": "t"}, net)
    assert {path: str(axis) for path, (axis,) in spec.axes.items()} == {
        "w": "p",
        "a/w": "q",
        "b/w": "r",
        "a/c/w": "s",
        "a/v": "t",
    }
    refused(
        "read_spec: expected rows about one leaf each, got others:\n"
        '  "w" can be a/w or b/w\n'
        '  "c" is no leaf\n'
        "Name leaves by their paths.",
        {"w": "p", "c": "p"},
        parts(**{"a/w": (2,), "b/w": (2,)}),
    )


def test_two_rows_of_one_leaf_are_refused():
    refused(
        "read_spec: expected rows about one leaf each, got others:\n"
        '  "params/fc0/bias" is params/fc0/bias, which has a row already\n'
        "Name leaves by their paths.",
        {**GIT_RE_BASIN, "params/fc0/bias": "P_0"},
    )


def test_leaves_without_a_row_are_listed():
    refused(
        "read_spec: expected a row for every leaf, got none for:\n"
        "  params/fc2/bias\n"
        "  params/fc2/kernel\n"
        "Give each a row, all None if its axes stay.",
        {name: row for name, row in GIT_RE_BASIN.items() if "fc2" not in name},
    )


def test_rows_with_another_number_of_axes_are_listed():
    refused(
        "read_spec: expected as many entries in a row as its leaf has axes, got "
        "others:\n"
        "  params/fc0/bias: shape (8,) needs 1, got 0\n"
        "  params/fc1/kernel: shape (8, 7) needs 2, got 1\n"
        "Give one entry per axis, None if it stays.",
        {**GIT_RE_BASIN, "fc0/bias": "", "fc1/kernel": "P_0*P_1"},
    )


def test_axes_that_cannot_be_read_are_listed(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    refused(
        "read_spec: expected axes that can be read, got others:\n"
        '  params/fc0/kernel:0: "6*": expected a label, a length, "(" or "{" at '
        "character 3, got the end\n"
        '  params/fc0/kernel:1: "P)": expected "+", "*" or the end at character 2, got '
        '")"\n'
        "  params/fc2/kernel:0: expected text, a length, None or an axis, got 0.5\n"
        "  params/fc2/kernel:1: expected text, a length, None or an axis, got True\n"
        'Write a label, a length, a product "4*P_1" or a concatenation "P_1+P_2".',
        {**GIT_RE_BASIN, "fc0/kernel": "6*, P)", "fc2/kernel": (0.5, True)},
    )


# Nesting.


NESTED = {"a": "p, q, r", "b": "p*q"}


def nest(parents, rows=None, shapes=None):
    net = parts(**(shapes or {"a": (2, 3, 4), "b": (6,)}))
    return read(rows or NESTED, net, parents=parents)


def test_parents_are_given_as_text_or_in_a_sequence():
    spec = nest({"q": "p", "r": ["p", "q"]}, {"a": "p, q, r", "b": "p*q"})
    assert [label.parents for label in spec.labels.values()] == [(), ("p",), ("p", "q")]
    assert nest({"q": ("p",), "r": "p q"}) == spec


@pytest.mark.parametrize(
    ("parents", "problem"),
    [
        ({"q": "pp"}, '"q" is nested in "pp", which is on no leaf; did you mean "p"?'),
        ({"q": "q"}, '"q" is nested in itself'),
        ({"q": "p p"}, '"q" is nested in "p" twice'),
        (
            {"q": "p", "r": "q p"},
            '"r" is nested in "q", and that in "p", which must come before it',
        ),
        (
            {"r": "q", "q": "r"},
            '"r" and "q" are nested in each other\n'
            '  "q" and "r" are nested in each other',
        ),
        (
            {"q": "p", "r": "q"},
            '"r" is nested in "q", and that in "p", which must come before it',
        ),
        (
            {"q": "r"},
            '"q" is nested in "r", which does not lie along with it, once, on b',
        ),
    ],
    ids=str,
)
def test_what_cannot_be_nested_is_refused(parents, problem):
    message = (
        "read_spec: expected every label to lie along with its outer labels on every "
        f"leaf that it is on, got:\n  {problem}\n"
        "Correct the rows, or what the labels are nested in."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        nest(parents)


def test_a_label_twice_on_a_leaf_is_no_parent_there():
    with pytest.raises(ValueError, match="does not lie along with it, once, on a"):
        nest({"q": "p"}, {"a": "p, p, q"}, {"a": (2, 2, 4)})


def test_a_parent_on_the_same_axis_counts_where_there_are_several():
    spec = nest({"q": "p"}, {"a": "p*q, p*q", "b": "p, q"}, {"a": (6, 6), "b": (2, 3)})
    assert spec.labels["q"].parents == ("p",)


def test_in_a_concatenation_a_parent_must_be_beside_every_part():
    shapes = {"a": (6, 4), "b": (2, 10)}
    spec = nest({"q": "p"}, {"a": "p*3, q", "b": "p, q+6"}, shapes)
    assert spec.labels["q"].parents == ("p",)
    with pytest.raises(ValueError, match="does not lie along with it, once, on a"):
        nest({"q": "p"}, {"a": "p+4, q", "b": "p, q+6"}, shapes)


@pytest.mark.parametrize(
    ("what", "values"),
    [("parents", {"P_9": "P_0", "P_1": ()}), ("sizes", {"P_9": 3, "P_1": 7})],
)
def test_what_is_said_of_no_label_is_refused(what, values):
    refused(
        f"read_spec: expected {what} of labels that are on leaves, got {what} of:\n"
        '  "P_9"; did you mean "P_1"?\n'
        "Correct the names, or put the labels on leaves.",
        GIT_RE_BASIN,
        **{what: values},
    )


# Overriding a derived spec.


def test_overriding_a_row_replaces_its_axes_and_nothing_else():
    spec = spec_of("branches")
    (axis, _) = spec.axes["out"]
    found = override(spec, {"out": (axis, "y")})
    expected = {**spec.axes, "out": (axis, Units("y", 2))}
    assert found.axes == expected
    assert list(found.labels) == [*spec.labels, "y"]
    assert {n: found.labels[n] for n in spec.labels} == spec.labels
    assert found.fixed == {s: why for s, why in spec.fixed.items() if s != ("out", 1)}
    assert (found.consumed, found.statistics) == (spec.consumed, spec.statistics)


@pytest.mark.parametrize("case", SOME, ids=str)
def test_overriding_every_row_by_its_own_text_changes_nothing(case):
    spec = spec_of(case)
    assert same(override(spec, rows_of(spec, str)), spec)
    assert same(override(spec, {}), spec)


def test_a_label_off_its_last_leaf_is_gone():
    spec = nets.spec_of("mlp", "linen")
    rows = {"fc1/kernel": "P_0, 7", "fc1/bias": (None,), "fc2/kernel": "7, 3"}
    found = override(spec, rows)
    assert list(found.labels) == ["P_0"]
    assert found.fixed[Site("params/fc1/bias", 0)] == BY_HAND
    assert found.fixed[Site("params/fc2/bias", 0)] == "meets an output of the network"


def test_parents_are_kept_unless_given():
    spec = spec_of("experts")
    renamed = override(spec, {"up": "P_0, 6, inner", "down": "P_0, inner, 3"})
    assert renamed.labels["inner"].parents == ()
    nested = override(
        spec, {"up": "P_0, 6, inner", "down": "P_0, inner, 3"}, parents={"inner": "P_0"}
    )
    assert nested.labels["inner"] == spec.labels["P_1"]
    assert override(spec, {}, parents={"P_1": ()}).labels["P_1"].parents == ()
    assert override(spec, {"router": "6, P_0"}) == spec


def test_a_label_whose_parent_is_overridden_away_must_be_nested_anew():
    spec = spec_of("experts")
    rows = {"router": "6, 4", "up": "4, 6, P_1", "down": "4, P_1, 3"}
    message = (
        "override: expected every label to lie along with its outer labels on every "
        'leaf that it is on, got:\n  "P_1" is nested in "P_0", which is on no leaf\n'
        "Correct the rows, or what the labels are nested in."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        override(spec, rows)
    assert list(override(spec, rows, parents={"P_1": ()}).labels) == ["P_1"]


def test_a_label_that_is_fixed_stays_so_when_overridden():
    spec = spec_of("scanned layers")
    found = override(spec, {"up": "S_0, 6, P_1"})
    assert found.labels["S_0"].fixed == "is scanned over"


def test_sizes_of_labels_that_are_kept_are_known_to_new_ones():
    spec = spec_of("group norm")
    found = override(spec, {"conv1/kernel": "3, 3, P_0*new, 6"})
    assert found.labels["new"].size == 3
    every = {
        path: re.sub("P_1", "new", ", ".join(map(str, axes)))
        for path, axes in spec.axes.items()
    }
    assert sizes_of(override(spec, every)) == {"P_0": 4, "new": 3}
    turned = override(spec, every, sizes={"P_0": 3})
    assert sizes_of(turned) == {"P_0": 3, "new": 4}


def test_an_override_that_does_not_fit_is_refused():
    spec = nets.spec_of("mlp", "linen")
    message = (
        "override: expected axes as long as what the rows put on them, got:\n"
        "  params/fc2/kernel:0 has length 7, but P_0 has 8\n"
        "Correct these rows, or those that they disagree with."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        override(spec, {"fc2/kernel": "P_0, 3"})
    with pytest.raises(ValueError, match=r'^override: .*\n  "fc3/kernel" is no leaf;'):
        override(spec, {"fc3/kernel": "P_0, 3"})
