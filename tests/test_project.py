"""The files that say what is installed agree, and what the README tells a student to type is there."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import qlab
from qlab import extras

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONDA_NAMES = {
    "torch": "pytorch-cpu",
    "matplotlib": "matplotlib-base",
}  # where conda-forge calls it otherwise
BINDER_PYTHON = "3.12"
LESSONS = ("llm", "onnx")  # extras that lessons need
REPO2DOCKER_JUPYTERLAB = "4.4.9"  # what Binder's base image brings


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pinned(name: str, python: str) -> Version:
    """The version of a package that a clone installs on Linux with this Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    found = [p for p in pins() if p.name == name and (p.marker is None or p.marker.evaluate(environment))]
    assert len(found) == 1, (
        f"{name} on Python {python}: constraints.txt has {list(map(str, found))}; run `make constraints`"
    )
    return Version(str(found[0].specifier).removeprefix("=="))


def dependencies(*extras: str) -> list[Requirement]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in lists for line in lines]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_every_direct_dependency_is_pinned_inside_its_range(python):
    environment = {"python_version": python, "sys_platform": "linux"}
    for need in dependencies("test", "video", "site", "bench"):
        if need.marker is None or need.marker.evaluate(environment):
            assert need.specifier.contains(pinned(need.name, python)), f"{need}: constraints.txt has another version"


def test_constraints_hold_versions_only():
    for pin in pins():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin}: expected one exact version"
        assert pin.url is None
        # An NVIDIA package's version belongs to one build of torch, which says so itself.
        assert not pin.name.startswith(("nvidia-", "cuda-", "triton"))


def test_pinned_torch_admits_the_cpu_build():
    """PyTorch's own index calls it 2.15.0+cpu, which satisfies a pin without such a label."""
    for pin in pins():
        if pin.name in ("torch", "torchvision"):
            assert pin.specifier.contains(str(pin.specifier).removeprefix("==") + "+cpu")


def conda_range(need: Requirement) -> str:
    """pyproject's lower bound up to the pinned minor version, the newest that the tests have seen."""
    lowest = next(part.version for part in need.specifier if part.operator == ">=")
    newest = pinned(need.name, BINDER_PYTHON)
    return f"{CONDA_NAMES.get(need.name, need.name)}>={lowest},<{newest.major}.{newest.minor + 1}"


def test_environment_yml_asks_for_what_pyproject_asks_for():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    expected = [f"python={BINDER_PYTHON}", "pip", *map(conda_range, dependencies(*LESSONS))]
    assert environment["dependencies"] == expected
    assert environment["channels"] == ["conda-forge"]


def test_binder_reads_the_same_environment():
    copy = ROOT / "binder" / "environment.yml"
    assert not copy.is_symlink(), "a symlink breaks in a clone on Windows"
    assert copy.read_bytes() == (ROOT / "environment.yml").read_bytes(), "cp environment.yml binder/"


def test_binder_does_not_keep_its_own_older_jupyterlab():
    jupyterlab = next(need for need in dependencies() if need.name == "jupyterlab")
    assert not jupyterlab.specifier.contains(REPO2DOCKER_JUPYTERLAB)


def test_repo2docker_takes_the_environment_and_installs_qlab():
    pytest.importorskip("repo2docker")
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    dockerfile = done.stdout + done.stderr
    assert "binder/environment.yml" in dockerfile
    assert "binder/postBuild" in dockerfile


def test_every_file_beside_the_code_is_package_data():
    """Weights that are not named in pyproject.toml are missing from an installed qlab, not from a clone."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    data = config["tool"]["setuptools"]["package-data"]
    shipped = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    tracked = subprocess.run(["git", "ls-files", "qlab"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git clone")
    others = [path for path in tracked.stdout.split() if not path.endswith(".py")]
    assert [path for path in others if ROOT / path not in shipped] == []


STRANGERS = re.compile(r"""pip install[^\n]*?[ "'`]qlab(?![\w./-])|qlab\\*\[(?:llm|onnx|video|test|bench)""")


@pytest.mark.parametrize(
    "text", ['pip install "qlab[video]"', "pip install qlab", "uv pip install -U 'qlab'", "needs `qlab[llm]`"]
)
def test_advice_to_install_a_strangers_project_would_be_found(text):
    assert STRANGERS.search(text)


def test_no_text_advises_to_install_a_strangers_project():
    """PyPI's `qlab` is not ours: to install it would run its setup.py. A notebook says what its source says."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git clone")
    texts = ".py", ".md", ".toml", ".yml", ".txt", ".js", "Makefile", "run", "postBuild"
    paths = [ROOT / name for name in tracked.stdout.split() if name.endswith(texts)]
    paths = [path for path in paths if path.exists() and path != Path(__file__).resolve()]
    assert ROOT / "README.md" in paths
    found = [(path, hit.group()) for path in paths for hit in STRANGERS.finditer(path.read_text("utf-8"))]
    assert found == []


def test_pip_knows_the_project_by_the_name_that_messages_say():
    assert PROJECT["name"] == extras.DISTRIBUTION != "qlab"
    code = "".join(path.read_text("utf-8") for path in (ROOT / "qlab").rglob("*.py"))
    named = set(re.findall(r"""remedy\(["'](\w+)""", code))
    assert {"llm", "onnx", "video"} <= named <= set(PROJECT["optional-dependencies"])


def test_the_oldest_python_and_torch_are_the_promised_ones():
    assert PROJECT["requires-python"] == ">=3.10"
    torch = next(need for need in dependencies() if need.name == "torch")
    assert torch.specifier.contains("2.11") and not torch.specifier.contains("2.10")


MODULES = {  # names in code, where they differ
    "pillow": "PIL",
    "ipython": "IPython",
    "pyyaml": "yaml",
    "opencv-python-headless": "cv2",
    "axe-playwright-python": "axe_playwright_python",
}


APART = {
    "convert_litert.py": {"litert_torch", "ai_edge_litert"},  # run in an environment of their own
    "site_panels.py": {"cells"},  # tells which cells a panel needs as tests do
    "fuzz_files.py": {"copies_of_cifar", "steps"},  # begins with the files that tests begin with
}


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Each package that a file imports, in which line, and whether at the top of the file."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            yield name.split(".")[0], node.lineno, node in tree.body


@pytest.mark.parametrize("folder", ["qlab", "tests", "tools", "site", "notebooks/source"])
def test_everything_that_is_imported_is_a_direct_dependency(folder):
    """What comes along with another package today may not come along with its next version."""
    needs, more = dependencies(), dependencies("test", "site", "bench")
    own = {path.stem for path in (ROOT / folder).glob("*.py")} | {"qlab"} | set(sys.stdlib_module_names)
    always = {MODULES.get(need.name, need.name) for need in needs} | own
    optional = {MODULES.get(need.name, need.name) for need in more}
    for path in (ROOT / folder).rglob("*.py"):
        for name, line, at_top in imports(path):
            # qlab may import an optional package too, inside the function that needs it.
            allowed = always if folder == "qlab" and at_top else always | optional | {"tomllib"}
            allowed |= set() if at_top else APART.get(path.name, set())
            assert name in allowed, f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_importing_qlab_imports_nothing_heavy():
    """A CPU torch beside a CUDA torchvision cannot be imported; and no lesson needs onnx to start."""
    heavy = ["torchvision", "matplotlib", "ipywidgets", "onnx", "transformers"]
    code = f"import qlab, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(qlab.__all__))
def test_every_public_name_is_there(name):
    assert getattr(qlab, name) is not None


def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8")


GUIDES = "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md"
OURS = r"(?:qlab|tools|tests|site|notebooks|binder|data|\.ci)/[\w./*-]*|\.pre-commit-config\.yaml|environment\.yml"


@pytest.mark.parametrize("name", GUIDES)
def test_every_file_that_a_guide_names_is_there(name):
    guide = (ROOT / name).read_text("utf-8")
    links = {(ROOT / name).parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", guide)}
    words = {ROOT / path.rstrip(".") for path in re.findall(rf"(?<![\w./~-])(?:{OURS})", guide)}
    assert links | words
    assert sorted(str(path) for path in links | words if not list(ROOT.glob(str(path.relative_to(ROOT))))) == []


def test_every_make_command_in_the_readme_is_a_rule():
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    commands = set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(re.findall(r"`[^`\n]+`|```.*?```", readme(), re.DOTALL))))
    assert {"lab", "test"} <= commands
    assert commands <= rules


def test_make_test_and_a_commit_begin_with_make_lint():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(r"^test:.* lint\b", makefile, re.MULTILINE) and re.search(r"^lint:", makefile, re.MULTILINE)
    ((hook,),) = (repo["hooks"] for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"])
    assert hook["entry"] == "make lint"


def test_types_are_checked_in_rooms_that_are_there():
    files = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]["files"]
    assert {"qlab/affine.py", "qlab/granularity.py", "qlab/observers.py", "qlab/quantizers.py"} <= set(files)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_ci_calls_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert script.rstrip().splitlines()[-1] == "make test", (
        "its closing line is what CI reads, so nothing may follow it"
    )


@pytest.fixture
def installer(tmp_path, monkeypatch):
    """tools/install.py, with a scratch folder in place of .venv."""
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "NOTE", tmp_path / "torch-source")
    monkeypatch.delenv("UV_TORCH_BACKEND", raising=False)
    return module


def fake_uv(folder: Path, body: str) -> str:
    """A program that stands in for uv: a shell script with this body."""
    path = folder / "uv"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


posix = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for uv is a shell script")


@posix
@pytest.mark.parametrize("version, said", [("2.15.0+cpu", "CPU, about 200 MB"), ("2.15.0+cu132", "CUDA, about 3 GB")])
def test_the_installer_takes_the_build_that_fits_where_pytorchs_index_answers(
    installer, tmp_path, capsys, version, said
):
    assert installer.torch_source(fake_uv(tmp_path, f"cat >/dev/null; echo torch=={version}")) == "auto"
    if sys.platform == "linux":
        assert said in capsys.readouterr().out


@posix
def test_the_installer_takes_pypis_build_where_pytorchs_index_gives_nothing(installer, tmp_path, capsys):
    uv = fake_uv(tmp_path, "cat >/dev/null; echo 'error: x' >&2; echo '  cause: no such host' >&2; exit 2")
    assert installer.torch_source(uv) == "pypi"
    assert "gave nothing (no such host)" in capsys.readouterr().out


@posix
def test_the_installer_does_not_wait_for_an_index_that_never_answers(installer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(installer, "PROBE_SECONDS", 0.2)
    assert installer.torch_source(fake_uv(tmp_path, "exec sleep 30")) == "pypi"
    assert "no answer within 0.2 s" in capsys.readouterr().out


def test_a_second_install_takes_torch_from_where_the_first_one_did(installer):
    """Otherwise torchvision could come from another place than torch, and not load."""
    installer.NOTE.write_text("pypi\n")
    assert installer.torch_source("no-such-uv") == "pypi"


def test_the_installer_says_which_command_failed(installer):
    with pytest.raises(SystemExit, match=r"this command failed with exit code 3.*\n.*raise SystemExit"):
        installer.run(sys.executable, "-c", "raise SystemExit(3)")


@posix
def test_the_installer_adds_an_extra_to_the_environment_that_is_there(installer, tmp_path, monkeypatch):
    """Whatever Python calls it: one that is too old to make a .venv will do where there is a .venv."""
    (tmp_path / "bin").mkdir()
    fake_uv(tmp_path / "bin", "true")
    for name, value in {"VENV": tmp_path, "BIN": tmp_path / "bin", "OLDEST": (4, 0)}.items():
        monkeypatch.setattr(installer, name, value)
    monkeypatch.setattr(installer.shutil, "which", lambda program: None)
    monkeypatch.setattr(installer, "works", lambda python: True)
    monkeypatch.setattr(installer, "check_torch", lambda: None)
    installer.NOTE.write_text("pypi\n")
    calls = []
    monkeypatch.setattr(installer, "run", lambda *command, **options: calls.append(" ".join(map(str, command))))
    installer.main(["video"])
    assert calls[0].startswith(f"{tmp_path / 'bin' / 'uv'} pip install") and calls[0].endswith("-e .[video]")
    assert not any("venv --" in call for call in calls)
    assert (tmp_path / "ready-video").exists()


def test_the_installer_refuses_an_extra_that_is_not_there(installer):
    with pytest.raises(SystemExit, match="unknown extra 'tset'; expected any of: llm, onnx, video, test, site, bench"):
        installer.main(["tset"])


def test_the_installer_knows_every_extra(installer):
    assert set(installer.EXTRAS) == set(PROJECT["optional-dependencies"])


def test_the_accuracies_in_the_readme_are_those_that_were_measured():
    names = {"ResNet-20": "resnet20", "MobileNetV2, half width": "mobilenet_v2", "VGG": "vgg"}
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(
        r"^\| ([\w, -]+?)(?:, QAT with [\w ]+ \((\w+)\))? \| ([\d.]+ %|-) \| ([\d.]+ %|-) \|$", readme, re.M
    )
    shown = {}
    for name, bits, cifar10, shapes10 in rows:
        for data, value in (("cifar10", cifar10), ("shapes10", shapes10)):
            if value != "-":
                shown["-".join(filter(None, (names[name], data, bits.lower())))] = float(value.removesuffix(" %"))
    manifest = json.loads((ROOT / "qlab" / "models" / "checkpoints" / "manifest.json").read_text())
    detectors = json.loads((ROOT / "qlab" / "detect" / "checkpoints" / "manifest.json").read_text())
    maps = re.findall(r"mAP ([\d.]+) %", readme)
    assert list(map(float, maps)) == [round(detectors[f"ssdlite-scenes{name}"]["test"], 1) for name in ("", "-w8a8")]
    assert shown == {key: round(entry["test"], 1) for key, entry in manifest.items()}


def test_the_installer_lets_python_keep_what_it_compiled(installer, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    calls = []
    monkeypatch.setattr(installer, "run", lambda *command, env: calls.append((command, env)))
    installer.compile_once()
    ((command, environment),) = calls
    assert "qlab.course" in command[2] and "PYTHONDONTWRITEBYTECODE" not in environment and environment["PATH"]
