"""Planned: what is found out about a recipe before it is done."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.derivation.explain_failure import explain_failure
from jmudsc.merging.memory_budget import tree_bytes
from jmudsc.progress import Progress
from jmudsc.recipes.costs import Stage
from jmudsc.recipes.machine_speed import measure_rates, Rates
from jmudsc.recipes.schema import Recipe
from jmudsc.spec.permutation_spec import PermutationSpec


@dataclass(frozen=True)
class Model:
    """What a checkpoint says of itself.

    Attributes:
        path: as the recipe has it.
        kind: its format.
        shapes: of its variables, as they would be loaded.
    """

    path: str
    kind: str
    shapes: PyTree[jax.ShapeDtypeStruct]

    @property
    def nbytes(self) -> int:
        """Bytes of its variables."""
        return tree_bytes(self.shapes)


@dataclass(frozen=True)
class Plan:
    """What a recipe would do.

    Attributes:
        recipe: the recipe, with no models, or import paths to nothing, where those that
            it names are wrong.
        models: per model of the recipe what is stored; None where that is not to be
            read.
        batches: number of batches; None if that is not known.
        spec: the permutation spec, if it could be derived or read.
        base: what is stored of the base; None without one, or where that is not to be
            read.
        stages: what is done, and what it takes; none where something else is wrong
            without which it cannot be told.
        rates: how fast the machine was found to be.
        streamed: whether the models have no room in memory and stay on disk.
        steps: of fine-tunes, what becomes of leaves -> of how many.
        problems: everything that is wrong, each as `merge` would say it.
    """

    recipe: Recipe
    models: tuple[Model | None, ...] = ()
    base: Model | None = None
    batches: int | None = None
    spec: PermutationSpec | None = None
    stages: tuple[Stage, ...] = ()
    rates: Rates | None = None
    streamed: bool = False
    steps: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """On what a recipe is to be done, and who is told how the plan comes along.

    Attributes:
        memory: bytes that the models may take.
        rates: how fast the machine is; None if that is to be measured.
        say: called with the stage, how much of it is done, and out of how much.
    """

    memory: int
    rates: Rates | None
    say: Progress

    def measured(self) -> Rates:
        """Return how fast the machine is, measured if it is not known."""
        if self.rates is not None:
            return self.rates
        self.say("measuring the machine", 0, 1)
        return measure_rates()


@contextlib.contextmanager
def noting(problems: list[str]) -> Iterator[None]:
    """Add what a block says is wrong to the problems, and go on after it.

    Args:
        problems: is added to.
    """
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        problems.append(str(error))
    except Exception as error:  # noqa: BLE001  (a recipe's own code may raise any)
        problems.append(f"{type(error).__name__}: {error}")


def run_on_shapes(
    key: str, function: Callable[..., Any], variables: PyTree, batch: PyTree
) -> None:
    """Run a function of a recipe on shapes, and say which it is if that fails.

    Args:
        key: the function's key in the recipe.
        function: `(variables, batch) -> anything`.
        variables: or their shapes.
        batch: the first.

    Raises:
        ValueError: if it fails, whatever the reason.
    """
    try:
        jax.eval_shape(function, variables, batch)
    except Exception as error:  # a recipe's own code may raise any
        if key == "apply_fn" and (why := explain_failure(function, variables, batch)):
            raise ValueError(f"recipe: {why}") from error
        raise ValueError(
            f"recipe: {key}: expected a function that runs on the variables and a "
            f"batch, got {error!r}. Correct the function, or what it is given."
        ) from error
