"""A network as a graph, one pass a file.

- ``nodes.py``: what a node is. ``trace.py``: a network becomes a graph, without in-place operations (``functional.py``)
  and with each operation in one spelling (``standard.py``).
- ``fold.py``: BatchNorm becomes part of the weights. ``equalize.py``: channels get ranges alike.
- ``prepare.py``: a quantizer on every edge, and ``layers.py`` that round their weights; ``report.py`` says what is.
- ``run.py``: the network node by node, or rounded in part.
- ``convert.py``: from there to integers. ``check.py``: each of these networks computes what the one before it did.
"""
