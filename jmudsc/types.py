"""Types: what the functions that users hand in must look like."""

from collections.abc import Callable

from jaxtyping import PyTree

# (variables, batch) -> outputs, in evaluation mode.
ApplyFn = Callable[[PyTree, PyTree], PyTree]

# (variables, batch) -> variables whose running statistics are updated, as in training.
UpdateFn = Callable[[PyTree, PyTree], PyTree]
