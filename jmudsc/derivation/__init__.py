"""Derivation: from a model's jaxpr to its permutation spec, and the proof of it."""
