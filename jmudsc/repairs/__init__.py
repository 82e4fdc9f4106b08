"""Repairs: what is mended in a merged network after averaging."""
