import re

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

from jmudsc.derivation.program import evaluate_jaxpr, run, scan_operands, trace
from jmudsc.derivation.terms.values import Place

VARIABLES = {
    "in": np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6),
    "out": np.linspace(1, -2, 12, dtype=np.float32).reshape(6, 2),
}
BATCH = np.linspace(-2, 2, 20, dtype=np.float32).reshape(5, 4)


@jax.custom_jvp
def squared(x):
    return x * x


@squared.defjvp
def _squared_jvp(primals, tangents):
    return squared(*primals), 2 * primals[0] * tangents[0]


@jax.custom_vjp
def cubed(x):
    return x * x * x


cubed.defvjp(lambda x: (cubed(x), x), lambda x, g: (3 * x * x * g,))


def network(activation, variables, x):
    return activation(x @ variables["in"]) @ variables["out"]


WRAPPERS = {
    "jit": jax.jit(jnp.tanh),
    "jit in jit": jax.jit(lambda x: jax.jit(jnp.tanh)(x) + 1),
    "remat": jax.checkpoint(jnp.tanh),
    "custom_jvp": squared,
    "custom_vjp": cubed,
    "all": jax.jit(jax.checkpoint(lambda x: cubed(squared(jax.nn.relu(x))))),
}
CALLS = "jit pjit remat2 checkpoint closed_call custom_jvp_call custom_vjp_call".split()


def arguments(variables, batch):
    return [*jax.tree.leaves(variables), *jax.tree.leaves(batch)]


def outputs_of(program, variables, batch):
    places = [Place(var) for var in program.outvars]
    return run(program, arguments(variables, batch), places)


@pytest.mark.parametrize("activation", WRAPPERS.values(), ids=WRAPPERS)
def test_every_call_is_inlined_and_computes_the_same(activation):
    def apply_fn(variables, x):
        return network(activation, variables, x)

    program = trace(apply_fn, VARIABLES, BATCH)
    assert not {eqn.primitive.name for eqn in program.eqns} & set(CALLS)
    (output,) = outputs_of(program, VARIABLES, BATCH)
    np.testing.assert_allclose(output, apply_fn(VARIABLES, BATCH), rtol=1e-6)


@pytest.mark.parametrize("form", nets.FORMS)
def test_a_program_of_a_network_computes_what_the_network_does(form):
    net = nets.build("vgg_max", form)
    program = trace(net.apply_fn, net.variables, net.batch)
    (output,) = jax.jit(lambda v, x: outputs_of(program, v, x))(
        net.variables, net.batch
    )
    assert nets.close(output, net.apply_fn(net.variables, net.batch))


def test_leaves_and_inputs_are_told_apart():
    batch = {"x": BATCH, "scale": np.float32(2)}

    def apply_fn(variables, batch):
        return network(jnp.tanh, variables, batch["x"]) * batch["scale"]

    program = trace(apply_fn, VARIABLES, batch)
    assert program.paths == ("in", "out")
    shapes = {path: var.aval.shape for path, var in program.leaves.items()}
    assert shapes == {"in": (4, 6), "out": (6, 2)}
    assert [var.aval.shape for var in program.inputs] == [(), (5, 4)]


def test_any_value_of_the_program_can_be_returned():
    program = trace(lambda v, x: network(jnp.tanh, v, x), VARIABLES, BATCH)
    (hidden,) = [eqn for eqn in program.eqns if eqn.primitive.name == "tanh"]
    wanted = map(Place, [*hidden.outvars, program.invars[0], *hidden.outvars])
    values = run(program, arguments(VARIABLES, BATCH), wanted)
    expected = np.tanh(BATCH @ VARIABLES["in"])
    for value, right in zip(values, [expected, VARIABLES["in"], expected], strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-5)


def test_dead_equations_are_dropped():
    def apply_fn(variables, x):
        jnp.sin(x @ variables["in"])  # goes nowhere
        return x @ variables["in"]

    names = [eqn.primitive.name for eqn in trace(apply_fn, VARIABLES, BATCH).eqns]
    assert names == ["dot_general"]


def test_an_equation_with_one_live_output_of_two_is_kept():
    def apply_fn(variables, x):
        _, indices = jax.lax.top_k(x @ variables["in"], 2)
        return indices

    names = [eqn.primitive.name for eqn in trace(apply_fn, VARIABLES, BATCH).eqns]
    assert names == ["dot_general", "top_k"]


def test_constants_are_kept_with_their_values():
    mask = np.array([1, 0, 1, 1, 0, 1], np.float32)

    def apply_fn(variables, x):
        return x @ variables["in"] * jnp.asarray(mask)[None]

    program = trace(apply_fn, VARIABLES, BATCH)
    (output,) = outputs_of(program, VARIABLES, BATCH)
    np.testing.assert_allclose(output, BATCH @ VARIABLES["in"] * mask, rtol=1e-6)


def test_nothing_is_computed_or_allocated():
    calls = []

    def apply_fn(variables, x):
        calls.append(type(x))
        return x @ variables["in"]

    shapes = jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.float32)
    program = trace(apply_fn, {"in": shapes}, shapes)  # 4 TiB each
    assert len(calls) == 1
    assert program.outvars[0].aval.shape == (1 << 20, 1 << 20)


def test_arrays_structs_and_numbers_give_one_program():
    def apply_fn(variables, x):
        return x @ variables["in"] * variables["gain"]

    abstract = jax.ShapeDtypeStruct((4, 6), jnp.float32)
    trees = [
        {"in": VARIABLES["in"], "gain": 2.0},
        {"in": jnp.asarray(VARIABLES["in"]), "gain": jnp.float32(2)},
        {"in": abstract, "gain": jax.ShapeDtypeStruct((), jnp.float32)},
    ]
    names = [
        [str(eqn.primitive) for eqn in trace(apply_fn, tree, BATCH).eqns]
        for tree in trees
    ]
    assert names[0] == names[1] == names[2]


def test_numpy_doubles_are_traced_as_jit_takes_them():
    variables = {"in": VARIABLES["in"].astype(np.float64), "step": np.int64(3)}
    program = trace(lambda v, x: x @ v["in"] * v["step"], variables, np.ones((5, 4)))
    dtypes = [var.aval.dtype for var in (*program.invars, *program.outvars)]
    assert dtypes == [np.float32, np.int32, np.float32, np.float32]


def test_evaluate_inlines_calls():
    offset = jnp.arange(3.0)
    closed = jax.make_jaxpr(jax.jit(lambda x: jax.jit(jnp.sin)(x) + offset))(offset)
    (output,) = evaluate_jaxpr(closed, [offset])
    np.testing.assert_allclose(output, np.sin(offset) + offset, rtol=1e-6)
    inlined = jax.make_jaxpr(lambda x: evaluate_jaxpr(closed, [x]))(offset)
    assert [eqn.primitive.name for eqn in inlined.jaxpr.eqns] == ["sin", "add"]


@jax.jit
def one_layer(carry, kernel):
    x, step = carry
    x = jax.jit(jnp.tanh)(x @ kernel + 0.1 * step)
    return (x, step + 1), (x.sum(axis=0), kernel)


STACK = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)


@pytest.mark.parametrize("reverse", [False, True])
def test_loops_are_kept_and_calls_in_them_inlined(reverse):
    def apply_fn(variables, x):
        return jax.lax.scan(one_layer, (x, 0), variables["stack"], reverse=reverse)

    program = trace(apply_fn, {"stack": STACK}, BATCH)
    (loop,) = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
    outputs = outputs_of(program, {"stack": STACK}, BATCH)
    expected = jax.tree.leaves(apply_fn({"stack": STACK}, BATCH))
    for actual, right in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-5)
    assert scan_operands(loop)[1] == 2  # the activations and the step


def test_a_value_in_a_loop_is_returned_for_every_step():
    def apply_fn(variables, x):
        return jax.lax.scan(lambda c, k: (jnp.tanh(c @ k), None), x, variables["stack"])

    program = trace(apply_fn, {"stack": STACK}, BATCH)
    (loop,) = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
    (product,) = [
        eqn.outvars[0]
        for eqn in loop.params["jaxpr"].jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]
    args = arguments({"stack": STACK}, BATCH)
    (values,) = run(program, args, [Place(product, (loop,))])
    x = BATCH
    for kernel, value in zip(STACK, values, strict=True):
        np.testing.assert_allclose(value, x @ kernel, rtol=1e-4, atol=1e-5)
        x = np.tanh(x @ kernel)


def test_a_value_in_a_loop_in_a_loop_has_both_steps_in_front():
    def inner(x, kernel):
        x = jnp.tanh(x @ kernel)
        return x, None

    def apply_fn(variables, x):
        def outer(x, scale):
            return jax.lax.scan(inner, x * scale, variables["stack"])

        return jax.lax.scan(outer, x, variables["scale"])[0]

    variables = {"stack": STACK, "scale": np.float32([1, 2])}
    program = trace(apply_fn, variables, BATCH)
    (around,) = [eqn for eqn in program.eqns if eqn.primitive.name == "scan"]
    (loop,) = [
        eqn for eqn in around.params["jaxpr"].jaxpr.eqns if eqn.primitive.name == "scan"
    ]
    (hidden,) = [
        eqn.outvars[0]
        for eqn in loop.params["jaxpr"].jaxpr.eqns
        if eqn.primitive.name == "tanh"
    ]
    args = arguments(variables, BATCH)
    (values,) = run(program, args, [Place(hidden, (around, loop))])
    assert values.shape == (2, 3, 5, 4)
    np.testing.assert_allclose(values[-1, -1], apply_fn(variables, BATCH), rtol=1e-5)


def test_while_loops_and_branches_compute_the_same():
    def apply_fn(variables, x):
        def body(state):
            step, x = state
            x = jax.lax.cond(
                x.sum() > 0, jax.jit(jnp.tanh), lambda x: x @ variables["out"], x
            )
            return step + 1, x

        limit = variables["limit"]
        return jax.lax.while_loop(
            lambda s: jax.jit(jnp.less)(s[0], limit), body, (0, x)
        )

    variables = {"out": STACK[0], "limit": np.int32(3)}
    for sign in (1, -1):
        program = trace(apply_fn, variables, BATCH)
        steps, x = outputs_of(program, variables, sign * BATCH + 0.1)
        expected = apply_fn(variables, sign * BATCH + 0.1)
        assert steps == expected[0]
        np.testing.assert_allclose(x, expected[1], rtol=1e-5)


@pytest.mark.parametrize("where", ["variables", "batch"])
def test_a_leaf_that_is_not_an_array_is_named(where):
    bad = {"activation": jnp.tanh, "kernel": np.ones(3), "name": "mlp"}
    trees = {"variables": VARIABLES, "batch": BATCH, where: bad}
    message = f"""\
{where}: expected arrays, got other leaves:
  activation: PjitFunction
  name: str
Pass arrays or jax.ShapeDtypeStructs only; keep functions and strings inside apply_fn \
(for Equinox: equinox.partition(model, is_array))."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        trace(lambda v, x: x, trees["variables"], trees["batch"])


COLLECTIVES = {
    "sum": lambda x: jax.lax.psum(x, "x"),
    "sum in groups": lambda x: jax.lax.psum(x, "x", axis_index_groups=[[0], [1]]),
    "gather": lambda x: jax.lax.all_gather(x, "x", axis=1, tiled=True),
    "ring": lambda x: jax.lax.ppermute(x, "x", [(0, 1), (1, 0)]),
    "pipeline": lambda x: jax.lax.ppermute(x, "x", [(0, 1)]),
    "number of a device": lambda x: x * jax.lax.axis_index("x"),
}


@pytest.mark.parametrize("collective", COLLECTIVES.values(), ids=COLLECTIVES)
def test_a_program_for_devices_is_run_without_them(collective):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec(None, "x")

    def apply_fn(variables, x):
        part = jax.shard_map(
            lambda x, kernel: collective(jnp.tanh(x @ kernel)),
            mesh=mesh,
            in_specs=(jax.sharding.PartitionSpec(), split),
            out_specs=split,
            check_vma=False,
        )
        return part(x, variables["in"])

    program = trace(apply_fn, VARIABLES, BATCH)
    (actual,) = run(
        program, [*jax.tree.leaves(VARIABLES), BATCH], [Place(*program.outvars)]
    )
    np.testing.assert_allclose(actual, apply_fn(VARIABLES, BATCH), rtol=1e-6)
