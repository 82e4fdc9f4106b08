"""Spec: what of a model may be permuted, as records and as text."""
