"""Schema: everything that decides one merge of checkpoints, as a YAML file says it.

```yaml
models:
  - path: runs/a/checkpoints/100        # any orbax checkpoint
  - path: runs/b/checkpoints/100
    subtree: [params, batch_stats]      # take only this of a larger state
  - path: runs/c.safetensors            # or a .safetensors, .npz or .msgpack file
    rename: {"*/weight": "*/kernel"}    # where its leaves have other names
apply_fn: my_model:apply_fn             # (variables, batch) -> outputs
update_fn: my_model:update_fn           # optional: resets running statistics
batches: {factory: my_data:calibration, size: 100}
method: mudsc-zip
alpha: 0.5
frozen: [params/stem/*]                 # optional: labels and leaves to keep in place
separate: [params/head/*]               # optional: leaves that each model keeps
losses: [my_data:a, my_data:b, my_data:c]  # optional: to evaluate and draw by
output: merged
```

Fine-tunes of one base are merged by the options of `merge_finetunes`:

```yaml
base: llama
models: [math, {path: code, subtree: params}]
method: ties
density: {"*/attention/*": 0.3, "*": [0.1, 0.5]}  # by leaves; from first layer to last
lambda_: 0.8
output: merged.safetensors
```

In the place of `batches`, every model may have its own, of its own task: the refit then
knows which model to follow on them.

An import path is `module:name`, the object itself, or `{factory: module:name, ...}`,
what the named function returns when called with the other keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jmudsc.checkpoints.hugging_face import SHARD_SIZE
from jmudsc.checkpoints.urls import AnyPath, is_url
from jmudsc.lora.merge_loras import FULL
from jmudsc.merging.options import MergeOptions
from jmudsc.recipes.families import Family, family_of, Options
from jmudsc.recipes.import_path import ImportPath
from jmudsc.recipes.source import Source


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one merge.

    Attributes:
        models: the parents: two or more, or of fine-tunes one or more.
        output: the directory or file to write, as for `save`.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode; None for
            fine-tunes whose method needs none.
        batches: the calibration batches of all tasks, a re-iterable; None where every
            model has its own, or none are needed.
        options: those of `merge`, or of `merge_finetunes`, that are plain values.
        functions: those that are Python objects, `update_fn` say: option -> import
            path.
        base: what fine-tunes were trained from; None for none.
        dtype: of the floating-point leaves of merged fine-tunes; that of the base, or
            of the first model, if None.
        tokenizer: a Hugging Face directory that the tokenizer of such a result is from;
            that of the base, or of the first model, if None.
        shard_size: how many bytes a file of such a result holds at most.
        space: in which numbers LoRA adapters are merged, as for `merge_loras`.
        seed: of the PRNG key.
        spec: a file with a spec as `jmudsc spec` prints it; None to derive it.
        losses: task -> `(variables) -> float`, smaller is better; where leaves are
            separate, one task for each model, in their order, of its own variables.
            They do not decide the merge.
        folder: what relative paths are relative to: the folder of the recipe.
        mergekit: the text of the configuration of mergekit that it was translated from;
            None if it is from none.
    """

    models: tuple[Source, ...]
    output: str
    apply_fn: ImportPath | None = None
    batches: ImportPath | None = None
    options: Options = field(default_factory=MergeOptions)
    functions: Mapping[str, ImportPath] = field(default_factory=dict)
    base: Source | None = None
    dtype: str | None = None
    tokenizer: str | None = None
    shard_size: int = SHARD_SIZE
    space: str = FULL
    seed: int = 0
    spec: str | None = None
    losses: Mapping[str, ImportPath] | None = None
    folder: AnyPath = field(default=Path(), compare=False)
    mergekit: str | None = field(default=None, compare=False)

    def place(self, path: str) -> str:
        """Take a path relative to the recipe's folder, unless it is a URL."""
        return path if is_url(path) else str(self.folder / path)

    @property
    def import_paths(self) -> dict[str, ImportPath]:
        """Key -> the import path there, for all keys but losses and models."""
        own = {"apply_fn": self.apply_fn, "batches": self.batches}
        given = {key: path for key, path in own.items() if path is not None}
        return {**given, **self.functions}

    @property
    def family(self) -> Family:
        """The kind of merge that it asks for."""
        return family_of(self.options)

    @property
    def donor(self) -> Source:
        """The model that the result is stored like: the base, or the first model."""
        return self.models[0] if self.base is None else self.base

    @property
    def sources(self) -> tuple[Source, ...]:
        """All checkpoints that are read: the models, and the base after them."""
        return self.models if self.base is None else (*self.models, self.base)
