"""Matrix work: about how many operations the linear algebra of a method takes.

Leading terms, from Golub and Van Loan, Matrix Computations (4th edition), sections 3.2,
8.3 and 8.6.
"""

from collections.abc import Callable

# (inputs, outputs, models) -> operations for one matrix of each model.
Work = Callable[[int, int, int], float]


def svd(rows: int, columns: int) -> float:
    """Return the operations of a singular value decomposition with both bases."""
    few, many = sorted((rows, columns))
    return 6.0 * many * few**2 + 20.0 * few**3


def eigh(size: int) -> float:
    """Return the operations of the eigenvalues and vectors of a symmetric matrix."""
    return 9.0 * size**3


def tsv(inputs: int, outputs: int, models: int) -> float:
    """Decompose each delta, and make two bases orthogonal."""
    few = min(inputs, outputs)
    return models * svd(inputs, outputs) + svd(inputs, few) + svd(few, outputs)


def iso_c(inputs: int, outputs: int, models: int) -> float:
    """Decompose the sum of the deltas."""
    return svd(inputs, outputs)


def iso_cts(inputs: int, outputs: int, models: int) -> float:
    """Decompose the sum and each delta, and make two bases orthogonal."""
    return svd(inputs, outputs) + tsv(inputs, outputs, models)


def gram_solve(inputs: int, outputs: int, models: int) -> float:
    """Multiply deltas with themselves, and solve by the eigenvectors of the sum."""
    products = 4.0 * models * inputs**2 * outputs
    return products + eigh(inputs) + 4.0 * inputs**2 * outputs


def ace(inputs: int, outputs: int, models: int) -> float:
    """Solve as others do, and decompose what comes of it."""
    return gram_solve(inputs, outputs, models) + svd(inputs, outputs)
