"""Adapters: models of a library as pure functions of variables, and back.

```python
from jmudsc.adapters import nnx

variables, apply_fn, update_fn = nnx.functions(model)
result = jmudsc.merge(apply_fn, [variables, other], batches, update_fn=update_fn)
merged = nnx.build(model, result.variables)
```

Every module has `functions`, and `build` where models hold their variables. A library
is imported with its adapter and at no other time.
"""
