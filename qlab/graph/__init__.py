"""A network as a graph: trace, fold, prepare, convert; one pass a file."""
