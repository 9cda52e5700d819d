"""Integer inference: the arithmetic in the open (reference), torch's fast kernels (engines), whole networks (modules)."""
