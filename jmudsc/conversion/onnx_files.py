"""ONNX files: the initializers of a graph by name, and how weights lie in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jmudsc.conversion.source import Layout, Source


def read_onnx(path: Path) -> Source:
    """Read the initializers of a graph.

    What reads a weight tells how it lies: a convolution has it as torch does, a matrix
    product as JAX does, and a `Gemm` says whether it transposes.

    Args:
        path: of the model; parameters in files beside it are read too.

    Raises:
        ModuleNotFoundError: if onnx is not installed.
        ValueError: if it is no such file.
    """
    import onnx
    from onnx import numpy_helper

    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # of any kind: protobuf and onnx have their own
        raise ValueError(
            f"{path}: expected an ONNX model, got something else ({error}). Export it "
            "again."
        ) from error
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    return Source(arrays, layouts=dict(_layouts(graph)))


def _layouts(graph: Any) -> Iterator[tuple[str, Layout]]:
    for node in graph.node:
        if len(node.input) < 2:
            continue
        if node.op_type == "Conv":
            yield node.input[1], "torch"
        if node.op_type == "MatMul":
            yield node.input[1], "jax"
        if node.op_type == "Gemm":
            given = {each.name: each.i for each in node.attribute}
            yield node.input[1], "torch" if given.get("transB") else "jax"
