"""Fisher: the mean weighted by how much each model's output depends on each entry."""

import functools

import numpy as np

from jmudsc.finetunes.piece import Piece


def fisher(piece: Piece) -> np.ndarray:
    """Weight each entry by its Fisher information (Matena & Raffel 2022, arXiv:2111.09832).

    That of a model is divided by its norm over the whole tree, and at least `floor`.
    """
    floor = piece.options["floor"]
    shares = [each + floor for each in piece.evidence["fisher"]]
    total = functools.reduce(np.add, shares)
    pairs = zip(shares, piece.models, strict=True)
    return functools.reduce(np.add, [share / total * model for share, model in pairs])
