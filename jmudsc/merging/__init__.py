"""Merging: the one call, its options and its result, and the result's way to disk."""
