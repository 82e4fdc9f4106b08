"""Conversion: from the files of other libraries to the tree of a network."""
