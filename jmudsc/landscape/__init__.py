"""Landscape: losses around and between networks, as numbers and figures."""
