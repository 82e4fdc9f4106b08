"""Layers: what of a program a repair can change, as records."""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from jmudsc.derivation.program import Program, shape_of
from jmudsc.repairs.contractions import Form, unit_axes
from jmudsc.repairs.leaf_entries import Entries
from jmudsc.repairs.operands import Operand
from jmudsc.spec.axes import Axis


@dataclass(frozen=True, eq=False)
class Linear:
    """A contraction of activations with a kernel, and the bias that is added to it.

    Attributes:
        eqn: the contraction.
        form: how it is computed.
        kernel: the entries of its operand, or how that is computed.
        bias: those of the bias, of size 1 on axes of samples; None if there is none.
        makes: what the axes of the output are.
        takes: what those of the activations are.
        is_normed: whether the output goes into a norm by running statistics.
        at: outer label -> the position along it, of a layer of a stack.
        is_turned: whether it uses the transposed matrix of what the first use of the
            same kernel does.
        is_led: whether the activations depend on what the same kernel made before, so
            that they are not known until it is.
    """

    eqn: Any
    form: Form
    kernel: Operand
    bias: Operand | None
    makes: tuple[Axis, ...]
    takes: tuple[Axis, ...]
    is_normed: bool
    at: Mapping[str, int] = field(default_factory=dict)
    is_turned: bool = False
    is_led: bool = False

    @property
    def operand(self) -> Any:
        """The variable of the activations."""
        return self.eqn.invars[1 - self.form.side]

    @property
    def unit_axes(self) -> tuple[int, ...]:
        """The axes of the output that run over units."""
        return unit_axes(self.form, len(self.makes))

    @property
    def sample_axes(self) -> tuple[int, ...]:
        """The axes of the output that run over samples."""
        return tuple(n for n in range(len(self.makes)) if n not in self.unit_axes)

    @property
    def samples(self) -> int:
        """The number of samples in the output."""
        shape = shape_of(self.eqn.outvars[0])
        return math.prod(shape[axis] for axis in self.sample_axes)


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm by running statistics.

    Attributes:
        eqn: the equation that takes the activations in.
        operand: the variable of the activations.
        mean: the entries of the running mean, of size 1 on axes of samples.
        variance: those of the running variance.
    """

    eqn: Any
    operand: Any
    mean: Entries
    variance: Entries


@dataclass(frozen=True, eq=False)
class Shared:
    """A kernel that is used more than once.

    Attributes:
        uses: the linear layers, in program order.
    """

    uses: tuple[Linear, ...]


Layer = Linear | Norm | Shared


@dataclass(frozen=True)
class Layers:
    """The linear layers and norms of a program.

    Attributes:
        program: the program, its loops written out.
        data: its variables that depend on the batch, the states of loops among them.
        steps: those whose leaves can be written, by where they come first.
        stops: the linear layers and norms, each use of a kernel, in program order.
        skipped: the path of every other kernel and statistic -> why it cannot be.
    """

    program: Program
    data: Set[Any]
    steps: tuple[Layer, ...]
    stops: tuple[Linear | Norm, ...]
    skipped: Mapping[str, str]


def uses_of(layer: Layer) -> tuple[Linear | Norm, ...]:
    """Return the equations of a layer, in program order."""
    return layer.uses if isinstance(layer, Shared) else (layer,)


def is_led(layer: Layer) -> bool:
    """Return whether a use of a layer is on what a use before it made."""
    return any(isinstance(use, Linear) and use.is_led for use in uses_of(layer))
