"""What the notebooks use, and nothing else does.

A lesson is a folder: ``exercises`` (with its questions), ``plots`` (data in, a figure out) and ``panels`` (controls around a
figure). What they share lies beside them: ``figure``, ``widgets``, the ``registry`` of all panels; ``exercises``, how they
are judged (``judging``) and remembered (``progress``), and the ``pages`` that a student and a teacher keep.
"""

from __future__ import annotations

from IPython.display import Markdown

from qlab.course.pages import class_page, portfolio
from qlab.data.dataset import Dataset

__all__ = ["banner", "class_page", "portfolio"]


def banner(data: Dataset) -> Markdown:
    """Which images a lesson runs on, for its first cell to show: all below was measured on these.

    >>> from qlab.data import shapes10
    >>> print(banner(shapes10("validation")).data)
    **Images: shapes10** (2,000 in the validation split; 10 classes: circle, crescent, ..., triangle)...
    """
    first, second, *_, last = data.classes
    classes = f"{len(data.classes)} classes: {first}, {second}, ..., {last}"
    words = f"**Images: {data.source}** ({len(data):,} in the {data.split} split; {classes})"
    if data.source.startswith("shapes10"):
        words += " stand in for CIFAR-10. To fetch that, run `qlab.data.cifar10()`; then restart the kernel."
    return Markdown(words)
