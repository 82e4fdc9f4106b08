"""Recipes: from a YAML file to a merge, its plan, evaluation and report."""
