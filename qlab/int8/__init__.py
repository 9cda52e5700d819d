"""Integer inference: the arithmetic in the open (reference), torch's kernels (engines), whole networks (modules)."""
