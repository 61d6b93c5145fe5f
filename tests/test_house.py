"""What holds for the repository as a whole: layers, speed of import, no machine's path, no registry's host."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_imports_go_down_the_page():
    # in a process of its own, because import-linter reconfigures logging and silences every logger that there is
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_machine_or_a_registry():
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("registry", "npmjs", "org"), ("deb", "debian", "org"))]
    pattern = re.compile("|".join(["/root/", r"/work/(?:main|shared)", r"/tmp/\w", *map(re.escape, hosts)]))
    for path in _tracked():
        if path.suffix in (".png", ".gif", ".npz", ".gz", ".bin") or path.name == "test_house.py":
            continue
        found = pattern.search(path.read_text(errors="ignore"))
        assert found is None, f"{path} names {found}"


def test_the_embedded_pictures_stay_small():
    size = sum(path.stat().st_size for path in (ROOT / "src/mezzotint/data/fashion").iterdir())
    assert size < 6_000_000


def _seconds(*command: str, repeats: int = 5) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return min(times)


def test_help_is_immediate():
    assert _seconds("-m", "mezzotint", "--help") < 0.5


def test_import_costs_little_more_than_torch():
    ours = _seconds("-c", "import mezzotint; mezzotint.create, mezzotint.load, mezzotint.Batch", repeats=3)
    assert ours < 1.5 * _seconds("-c", "import torch", repeats=3)


def test_every_version_is_pinned():
    pinned = [line.split(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    assert sum("==" in line for line in pinned) > 50
    assert all("==" in line for line in pinned if line and not line.startswith("#"))


def test_every_file_of_the_package_is_installed_with_it():
    """Whatever is no module must be named by package-data, or a wheel lacks it."""
    settings = re.search(r"^mezzotint = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    patterns = re.findall(r'"([^"]+)"', settings[1])
    package = ROOT / "src" / "mezzotint"
    named = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in _tracked() if package in path.parents and path.suffix != ".py"}
    assert others <= named
