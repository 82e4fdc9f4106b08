"""Rules: what each primitive does to the axes of its operands."""
