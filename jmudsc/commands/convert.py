"""Convert: the file of another library as a checkpoint of a network in JAX."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from jmudsc.commands.values import pairs, Place


def convert(
    source: Place,
    like: str,
    out: Annotated[str, tyro.conf.arg(aliases=("-o",))],
    adapter: str | None = None,
    rename: tuple[str, ...] = (),
    layout: Literal["torch", "jax"] | None = None,
) -> None:
    """Convert weights of Keras, ONNX or torch to a checkpoint of your network.

    Arrays are paired with the leaves of the network by name, and the axes of weights
    are put into its order. All that has no partner or does not fit is listed, and then
    nothing is written.

    Args:
        source: a .keras, .weights.h5, .h5 or .onnx file, or safetensors in torch's
            layout; or any checkpoint that jmudsc reads.
        like: module:name of the variables that the network has, or of a function that
            returns them; the module may lie in the current directory.
        out: the checkpoint to write: a directory, or a .safetensors, .npz or .msgpack
            file.
        adapter: what the function of like returns is a model of this library: linen
            (with its variables), nnx, equinox, haiku, keras or huggingface.
        rename: OLD=NEW, pattern of names in the source and path in the network; nothing
            after = leaves arrays out.
        layout: how weights lie in the source, if it is not to be found out by shapes.
    """
    from jmudsc.checkpoints.save import save_variables
    from jmudsc.conversion.convert import converted
    from jmudsc.recipes.variables_like import variables_like

    renamed = {old: new or None for old, new in pairs("rename", rename)}
    tree = converted(source, variables_like(like, adapter, Path.cwd()), renamed, layout)
    print(f"Wrote {save_variables(out, tree)}")
