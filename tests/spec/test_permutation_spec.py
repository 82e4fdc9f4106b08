import dataclasses

import nets
import pytest

from jmudsc import Concat, Fixed, PermutationSpec, Product, Site, Units
from jmudsc.spec.permutation_spec import labels_of

HEADS, INNER = Units("heads", 3), Units("inner", 4)
ATTENTION = {
    "out/kernel": (HEADS, INNER, Fixed(5)),
    "value/bias": (Product((HEADS, INNER)),),
    "scale": (Concat((Units("rest", 2), Units("rest", 2))),),
    "step": (),
}
SIZES = {"heads": 3, "inner": 4, "rest": 2}
PARENTS = {"inner": ("heads",)}


@pytest.fixture
def spec():
    return PermutationSpec(ATTENTION, labels_of(ATTENTION, SIZES, PARENTS))


def test_sites_are_every_axis_on_which_a_label_occurs(spec):
    assert spec.labels["heads"].sites == (
        Site("out/kernel", 0),
        Site("value/bias", 0),
    )
    assert spec.labels["inner"].sites == (
        Site("out/kernel", 1),
        Site("value/bias", 0),
    )


def test_a_label_twice_on_an_axis_is_one_site(spec):
    assert spec.labels["rest"].sites == (Site("scale", 0),)


def test_labels_keep_the_order_of_their_sizes():
    for sizes in (SIZES, dict(reversed(SIZES.items()))):
        assert list(labels_of(ATTENTION, sizes, PARENTS)) == list(sizes)


def test_a_label_on_no_axis_is_left_out():
    assert "gone" not in labels_of(ATTENTION, SIZES | {"gone": 7}, {})


def test_rows_have_an_index_for_every_parent(spec):
    assert spec.row_shape("heads") == (3,)
    assert spec.row_shape("inner") == (3, 4)


def test_children_are_the_labels_nested_directly():
    axes = {"x": (Units("a", 2), Units("b", 3), Units("c", 4))}
    parents = {"b": ("a",), "c": ("a", "b")}
    spec = PermutationSpec(axes, labels_of(axes, {"a": 2, "b": 3, "c": 4}, parents))
    assert spec.children("a") == ("b",)
    assert spec.children("b") == ("c",)
    assert spec.children("c") == ()
    assert spec.row_shape("c") == (2, 3, 4)


def test_a_spec_cannot_be_changed_in_place(spec):
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.axes = {}


def test_the_table_of_an_mlp_reads():
    spec = nets.spec_of("mlp", "linen")
    assert (
        str(spec)
        == """\
2 labels on 5 of 6 leaves

label    units  per unit of
P_0          8
P_1          7

leaf               axes
params/fc0/bias    P_0
params/fc0/kernel  6, P_0
params/fc1/bias    P_1
params/fc1/kernel  P_0, P_1
params/fc2/bias    3
params/fc2/kernel  P_1, 3

fixed                why
params/fc0/kernel:0  meets an input of the network
params/fc2/bias:0    meets an output of the network
params/fc2/kernel:1  meets an output of the network"""
    )


def test_the_table_shows_nesting_fixed_labels_compound_axes_and_statistics(spec):
    labels = {
        "heads": dataclasses.replace(spec.labels["heads"], fixed="is scanned over"),
        "inner": dataclasses.replace(spec.labels["inner"], fixed='is frozen by "in*"'),
    }
    spec = dataclasses.replace(
        spec,
        labels={**spec.labels, **labels},
        fixed={Site("out/kernel", 2): "meets an output of the network"},
        statistics=frozenset({"value/bias"}),
    )
    assert (
        str(spec)
        == """\
3 labels on 3 of 4 leaves

label    units  per unit of
heads        3  (fixed: is scanned over)
inner        4  heads  (fixed: is frozen by "in*")
rest         2

leaf        axes
out/kernel  heads, inner, 5
value/bias  heads*inner  (running statistic)
scale       rest+rest
step

fixed         why
out/kernel:2  meets an output of the network"""
    )


def test_the_table_of_an_empty_spec_reads():
    assert (
        str(PermutationSpec({}, {}))
        == """\
0 labels on 0 of 0 leaves

label    units  per unit of

leaf  axes"""
    )


def test_columns_stay_aligned_under_long_names():
    axes = {"a": (Units("decoder_hidden", 3), Fixed(2))}
    labels = labels_of(axes, {"decoder_hidden": 3}, {})
    fixed = {Site("a", 1): "meets an output of the network"}
    assert (
        str(PermutationSpec(axes, labels, fixed))
        == """\
1 label on 1 of 1 leaf

label          units  per unit of
decoder_hidden     3

leaf  axes
a     decoder_hidden, 2

fixed  why
a:1    meets an output of the network"""
    )
