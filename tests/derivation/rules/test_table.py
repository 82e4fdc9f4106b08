"""The table of primitives: what each record says, and what it leaves unknown."""

import dataclasses

import pytest

from jmudsc.derivation.rules import table
from jmudsc.derivation.rules.primitive import Primitive

FACETS = {field.name for field in dataclasses.fields(Primitive)} - {"name"}
# Facets of primitives that are not walked over by a rule: calls are put in the place of
# what they call, loops and branches are followed step by step, collectives of
# `shard_map` become others.
INSTEAD = {"bodies", "call", "without_devices"}
# What is left unknown (see `Primitive` for what follows from that) -> the primitives
# with a rule that do so. A new primitive has to be put in a row.
LEFT_OUT = {
    "positions lookups summed meets entries arithmetic joins_columns": """
        abs acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
        clz complex conj cos cosh cumlogsumexp cummax cummin cumprod cumsum digamma erf
        erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow
        is_finite le lgamma log log1p log2 logistic min neg nextafter not
        one_minus_square or polygamma population_count pow real reduce_and reduce_max
        reduce_min reduce_or reduce_precision reduce_prod reduce_sum reduce_xor
        regularized_incomplete_beta rem round shift_left shift_right_arithmetic
        shift_right_logical sign sin sinh square tan tanh xor zeta
    """,
    "positions axis_map lookups summed meets entries arithmetic joins_columns": """
        device_put dynamic_update_slice fft name pmax pmin psum reduce_window
        reduce_window_max reduce_window_min reduce_window_sum stack unstack
    """,
    "positions lookups summed meets entries joins_columns": """
        clamp div max mul rsqrt sqrt sub
    """,
    "lookups summed meets arithmetic joins_columns": """
        broadcast_in_dim convert_element_type copy reshape squeeze stop_gradient
        transpose
    """,
    "axis_map lookups summed entries arithmetic joins_columns": """
        scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub split
    """,
    "lookups summed meets entries arithmetic joins_columns": "lt select_n sort top_k",
    "axis_map lookups summed meets entries arithmetic joins_columns": """
        argmax argmin iota optimization_barrier
    """,
    "positions lookups entries arithmetic joins_columns": """
        conv_general_dilated dot_general
    """,
    "lookups summed entries arithmetic joins_columns": "eq ne",
    "positions axis_map lookups summed meets arithmetic joins_columns": """
        rev sharding_constraint
    """,
    "positions axis_map lookups summed entries arithmetic joins_columns": "pad tile",
    "positions entries arithmetic joins_columns": "ragged_dot_general",
    "lookups summed meets entries joins_columns": "add",
    "summed entries arithmetic joins_columns": "gather",
    "axis_map lookups summed entries arithmetic": "concatenate",
    "axis_map lookups summed arithmetic joins_columns": "slice",
    "positions summed meets arithmetic joins_columns": "dynamic_slice",
}
EXPECTED = {
    name: set(facets.split())
    for facets, names in LEFT_OUT.items()
    for name in names.split()
}
RULED = {name: record for name, record in table.SHIPPED.items() if record.rule}


def left_out(record):
    return {facet for facet in FACETS if getattr(record, facet) is None}


@pytest.mark.parametrize("name", sorted(RULED | EXPECTED))
def test_a_primitive_with_a_rule_says_which_facets_it_leaves_out(name):
    assert name in EXPECTED, f"{name}: put it in a row of the facets it leaves out"
    assert left_out(RULED[name]) - INSTEAD == EXPECTED[name]
    assert left_out(RULED[name]) >= INSTEAD


def test_a_primitive_is_in_one_row_and_has_one_record():
    rows = [name for names in LEFT_OUT.values() for name in names.split()]
    assert len(rows) == len(set(rows))
    records = [r for family in table.FAMILIES for r in family.PRIMITIVES]
    assert len(records) == len({record.name for record in records})


def test_what_has_no_rule_is_a_call_or_control_flow_or_a_collective():
    for name, record in table.SHIPPED.items():
        if name not in RULED:
            assert len(FACETS - left_out(record)) == 1, name
            assert FACETS - left_out(record) <= INSTEAD, name
