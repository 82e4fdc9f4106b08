"""Control flow: primitives that run a program inside them."""

from collections.abc import Sequence
from typing import Any

from jmudsc.derivation.rules.primitive import Bodies, Call, Primitive


def wraps(param: str) -> Call:
    """Return how to call a program that is held by a parameter, with all operands."""

    def call(params: dict[str, Any], ins: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
        return params[param], ins

    return call


# The axes of values inside a loop or a branch are followed by `interpreter`, and their
# steps are evaluated by `program`: that is no property of a single equation.
PRIMITIVES = (
    Primitive("cond", bodies=lambda eqn: Bodies(is_choice=True)),
    Primitive("scan", bodies=lambda eqn: Bodies(steps=eqn.params["length"])),
    Primitive("while", bodies=lambda eqn: Bodies(steps=None)),
    Primitive("checkpoint", call=wraps("jaxpr")),
    Primitive("closed_call", call=wraps("call_jaxpr")),
    Primitive("composite", call=wraps("jaxpr")),
    Primitive("core_call", call=wraps("call_jaxpr")),
    Primitive("custom_jvp_call", call=wraps("call_jaxpr")),
    Primitive("custom_vjp_call", call=wraps("call_jaxpr")),
    Primitive("jit", call=wraps("jaxpr")),
    Primitive("pjit", call=wraps("jaxpr")),
    Primitive("remat2", call=wraps("jaxpr")),
)
