"""Matching: which units of several models become one."""
