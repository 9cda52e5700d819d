"""The language of what a student reads: English, unless LANGUAGE names one that ``course/locale`` has."""

from __future__ import annotations

import gettext
from pathlib import Path

_ = gettext.translation("qlab", Path(__file__).parent / "locale", fallback=True).gettext


def signed(points: float) -> str:
    """A change with its sign, to a tenth; no change has none.

    >>> signed(0.25), signed(-8.0), signed(-1e-14)
    ('+0.2', '-8.0', '0.0')
    """
    return f"{points:+.1f}" if round(points, 1) else "0.0"
