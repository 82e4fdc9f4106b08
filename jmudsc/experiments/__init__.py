"""Experiments: networks, data and training of the shipped experiments."""
