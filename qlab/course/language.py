"""The language of what a student reads: English, unless LANGUAGE names one that ``course/locale`` has."""

from __future__ import annotations

import gettext
from pathlib import Path

_ = gettext.translation("qlab", Path(__file__).parent / "locale", fallback=True).gettext
