"""Terms: axis expressions under construction, and what is known of a value."""
