"""How much memory a test takes."""

from __future__ import annotations

import sys


def peak() -> float:
    """The most bytes of memory that this process has had; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
