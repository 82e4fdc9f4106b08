"""Libraries: those that have an adapter, by the names of its modules."""

LIBRARIES = ("equinox", "haiku", "huggingface", "keras", "linen", "nnx")
