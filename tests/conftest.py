"""What every test file shares: one thread, one seed, no display, nothing written into a user's folders."""

from __future__ import annotations

import os
import shutil
import tempfile

# Before torch, matplotlib and Jupyter are imported: they look at the environment once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
_scratch = tempfile.TemporaryDirectory(prefix="qlab-tests-")
for _name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR"):
    os.environ.setdefault(_name, os.path.join(_scratch.name, _name.lower()))

os.environ.setdefault("QLAB_PROGRESS", os.path.join(_scratch.name, "progress.json"))

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# A busy machine is no failure. In CI the same examples every time: red has to mean that the change did it.
hypothesis.settings.register_profile("qlab", deadline=None, derandomize="CI" in os.environ, print_blob=True)
hypothesis.settings.load_profile("qlab")

# Beside laws, what runs the same lines a hundred times over: a figure drawn for every value of its controls.
REPEATS = "test_every_value_of_every_control", "test_a_frame_depends_on"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no worker waits for another's last lesson at the end."""

    def place(item: pytest.Item) -> int:
        return 0 if item.get_closest_marker("browser") else 1 if item.path.suffix == ".ipynb" else 2

    items.sort(key=place)
    for item in items:  # to be traced for coverage makes it half as slow again
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False) or item.name.startswith(REPEATS):
            item.add_marker("no_cover")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep nbval from tracing the notebooks' kernels for coverage: each would import torch a third slower."""
    if hasattr(session.config, "workerinput"):
        session.config.option.cov_source = None


@pytest.fixture(autouse=True)
def _same_seed_for_every_test() -> None:
    import torch  # not above: the process that only hands out the tests needs none of it

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium; the test is skipped where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium on the PATH (Debian: apt install chromium)")
