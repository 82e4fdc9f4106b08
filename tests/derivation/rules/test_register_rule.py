"""Rules that users register: custom primitives and kernels."""

import inspect
import re

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.interpreters import mlir
from laws import check_law, random_arrays, walk, written

import jmudsc
from jmudsc.derivation.rules import common, elementwise, table
from jmudsc.derivation.rules.primitive import Moves, Primitive

LEAKY = jex.Primitive("leaky")
LEAKY.def_abstract_eval(lambda x: x)
LEAKY.def_impl(lambda x: jnp.where(x > 0, x, 0.1 * x))
mlir.register_lowering(
    LEAKY,
    mlir.lower_fun(lambda x: jnp.where(x > 0, x, 0.1 * x), multiple_results=False),
)


@pytest.fixture(autouse=True)
def _leave_no_rule(monkeypatch):
    monkeypatch.setattr(table, "_registered", {})


def gated(x, gate):
    def kernel(x_ref, gate_ref, out_ref):
        out_ref[...] = x_ref[...] * jax.nn.sigmoid(gate_ref[...])

    out = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, out, interpret=True, name="gated")(x, gate)


def kernels(terms, eqn, ins):
    if eqn.params["name"] == "gated":
        return elementwise.aligned(terms, eqn, ins)
    return common.unknown(terms, eqn, ins)


def derived(fn, shapes):
    args = random_arrays(shapes)
    *seen, _ = walk(fn, args)
    check_law(fn, args, *seen)
    return written(*seen)


@pytest.mark.parametrize("primitive", [LEAKY, "leaky"])
def test_a_custom_primitive_has_the_rule_that_is_registered(primitive):
    assert derived(LEAKY.bind, [(3, 4)]) == "3 4 -> 3 4"
    jmudsc.register_rule(primitive, elementwise.aligned)
    assert derived(LEAKY.bind, [(3, 4)]) == "a b -> a b"


def test_a_pallas_kernel_has_the_rule_that_is_registered_for_its_name():
    assert derived(gated, [(3, 4), (3, 4)]) == "3 4, 3 4 -> 3 4"
    jmudsc.register_rule("pallas_call", kernels)
    assert derived(gated, [(3, 4), (3, 4)]) == "a b, a b -> a b"


def test_the_units_of_a_network_with_a_kernel_may_be_permuted():
    def apply_fn(v, x):
        return gated(x @ v["in"], x @ v["gate"]) @ v["out"]

    shapes = {"in": (3, 8), "gate": (3, 8), "out": (8, 2)}
    variables = dict(zip(shapes, random_arrays(shapes.values()), strict=True))
    batch = random_arrays([(4, 3)])[0]
    assert not jmudsc.infer_spec(apply_fn, variables, batch).labels
    jmudsc.register_rule("pallas_call", kernels)
    spec = jmudsc.infer_spec(apply_fn, variables, batch)
    assert [label.size for label in spec.labels.values()] == [8]
    jmudsc.check_spec(spec, apply_fn, variables, batch, key=jax.random.key(0))


def test_a_whole_record_is_registered():
    record = Primitive("leaky", rule=elementwise.aligned, entries=Moves.KEPT)
    jmudsc.register_rule(LEAKY, record)
    (eqn,) = jax.make_jaxpr(LEAKY.bind)(jnp.ones(3)).jaxpr.eqns
    assert table.primitive_of(eqn) is record


def test_a_rule_may_be_registered_anew():
    jmudsc.register_rule("leaky", common.unknown)
    jmudsc.register_rule("leaky", elementwise.aligned)
    assert derived(LEAKY.bind, [(3, 4)]) == "a b -> a b"


def test_what_is_shipped_is_replaced_only_if_asked():
    message = (
        "register_rule: expected a primitive that jmudsc has no record of, got "
        '"reduce_sum". Pass replace=True to replace its record.'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        jmudsc.register_rule("reduce_sum", common.unknown)
    jmudsc.register_rule("reduce_sum", common.unknown, replace=True)
    assert derived(lambda x: x.sum(0), [(3, 4)]) == "3 4 -> 4"


def test_a_loop_that_is_replaced_is_not_walked_through():
    def run(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c), None), x, None, 2)[0]

    shape = {"x": jnp.ones(3)}
    spec = jmudsc.infer_spec(lambda v, x: run(v["x"]).sum() * x, shape, jnp.ones(()))
    assert spec.labels
    jmudsc.register_rule("scan", common.unknown, replace=True)
    spec = jmudsc.infer_spec(lambda v, x: run(v["x"]).sum() * x, shape, jnp.ones(()))
    assert spec.fixed[jmudsc.Site("x", 0)] == "is touched by scan, which has no rule"


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (
            (jnp.sin, elementwise.aligned),
            TypeError,
            "register_rule: expected a primitive or its name, got a {kind}. Pass the "
            "jax.extend.core.Primitive.",
        ),
        (
            ("leaky", 3),
            TypeError,
            'register_rule: expected a rule for "leaky", got a int. Pass a function '
            "(terms, eqn, ins) -> outs, or a record.",
        ),
        (
            ("leaky", Primitive("other")),
            ValueError,
            'register_rule: expected a record of "leaky", got one of "other". Register '
            "it under its own name.",
        ),
    ],
)
def test_what_cannot_be_registered_is_refused(args, error, message):
    unchecked = inspect.unwrap(jmudsc.register_rule)  # users have no beartype
    with pytest.raises(error) as caught:
        unchecked(*args)
    assert str(caught.value) == message.format(kind=type(args[0]).__name__)


def test_a_rule_that_does_not_fit_the_outputs_is_refused():
    jmudsc.register_rule("leaky", lambda terms, eqn, ins: [ins[0][:1]])
    message = (
        'rule of "leaky": expected axes of sizes [(3, 4)] for the outputs, got [(3,)]. '
        "Return one list of terms per output, with one term per axis."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        walk(LEAKY.bind, random_arrays([(3, 4)]))
