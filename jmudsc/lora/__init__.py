"""LoRA: low-rank adapters of a base are folded into it, merged, and factored anew."""
