"""Reordering: what an assignment of units does to arrays."""
