"""The table of primitives: what each record says, and what it leaves unknown."""

import dataclasses

import pytest
from rule_cases import LEFT_OUT

from jmudsc.derivation.rules import table
from jmudsc.derivation.rules.primitive import Primitive

FACETS = {field.name for field in dataclasses.fields(Primitive)} - {"name"}
# Facets of primitives that are not walked over by a rule: calls are put in the place of
# what they call, loops and branches are followed step by step, collectives of
# `shard_map` become others.
INSTEAD = {"bodies", "call", "without_devices"}
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
