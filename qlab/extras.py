"""How to get the packages that only a part of qlab needs: one sentence, for every message that has to say it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DISTRIBUTION = "qlab-course"  # what pip calls it: `qlab` on PyPI is somebody else's project
FOLDER = Path(__file__).resolve().parents[1]  # the clone's, where there is one


def remedy(*extras: str) -> str:
    """The command that installs what ``extras`` of pyproject.toml name, into the environment that runs now.

    A clone that ``make`` set up has its installer; one in another environment (conda, Binder) is named to pip by its
    folder; qlab without a clone by its name.

    >>> remedy("video").endswith("video") or remedy("video").endswith('[video]"')
    True
    """
    own = FOLDER / ".venv"
    if not (FOLDER / "tools" / "install.py").is_file():
        return f'pip install "{DISTRIBUTION}[{",".join(extras)}]"'
    if Path(sys.prefix).resolve() != own.resolve():
        return f'pip install -e "{FOLDER}[{",".join(extras)}]"'
    installer = r"py tools\install.py" if os.name == "nt" else "python3 tools/install.py"
    return f"{installer} {' '.join(extras)}"
