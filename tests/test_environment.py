"""pyproject.toml (ranges), requirements.lock (exact) and environment.yml (conda) agree, the wheel is whole, and
`import peftkit` is fast."""
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCKED_EXTRAS = ("notebooks", "test")
HEAVY = ("accelerate", "datasets", "matplotlib", "numpy", "pandas", "peft", "PIL", "pyarrow", "scipy", "sklearn",
         "tokenizers", "torch", "transformers", "yaml")
BREAKING = {"torch", "transformers", "peft", "pandas", "matplotlib", "papermill", "nbval"}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [Requirement(line) for line in PROJECT["dependencies"] + [r for extra in EXTRAS.values() for r in extra]]
LOCKED = [Requirement(line) for line in PROJECT["dependencies"] + [r for extra in LOCKED_EXTRAS for r in EXTRAS[extra]]]


def lock_lines() -> list[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


LOCK = {canonicalize_name(line.partition("==")[0]): Version(line.partition("==")[2]) for line in lock_lines()}


def bound(requirement: Requirement, operator: str) -> str:
    """The version after `operator` in `requirement`, which must name it exactly once."""
    versions = [s.version for s in requirement.specifier if s.operator == operator]
    assert len(versions) == 1, f"pyproject.toml: {requirement} needs exactly one {operator}"
    return versions[0]


def next_breaking(version: Version) -> str:
    """The first release that may break: the next major, for 0.x the next minor."""
    return f"0.{version.minor + 1}" if version.major == 0 else str(version.major + 1)


@pytest.mark.parametrize("requirement", DECLARED, ids=str)
def test_range_is_capped_at_the_next_breaking_release(requirement):
    assert bound(requirement, "<") == next_breaking(Version(bound(requirement, ">=")))
    assert len(requirement.specifier) == 2, f"pyproject.toml: {requirement} is more than a lower bound and a cap"


@pytest.mark.parametrize("requirement", LOCKED, ids=str)
def test_lower_bound_is_the_locked_version(requirement):
    locked = LOCK.get(canonicalize_name(requirement.name))
    assert locked is not None, f"requirements.lock has no line for {requirement.name}"
    assert locked in requirement.specifier, f"requirements.lock: {requirement.name}=={locked} is outside {requirement}"
    lower = Version(bound(requirement, ">=")).release
    assert locked.release[:len(lower)] == lower, f"{requirement}: the tested version is {locked}"


def test_packages_that_break_us_are_declared():
    assert BREAKING <= {requirement.name for requirement in LOCKED}


def test_lock_holds_one_exact_version_a_line():
    bad = [line for line in lock_lines() if not re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line)]
    assert not bad, f"requirements.lock, not name==version (a local label such as +cpu must go): {bad}"
    assert len(LOCK) == len(lock_lines()), "requirements.lock names a package twice"
    cuda = [name for name in LOCK if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not cuda, f"requirements.lock was made beside a CUDA build of torch: {cuda}"
    assert not {"pip", "peftkit"} & LOCK.keys()


def test_lock_holds_every_dependency_of_a_dependency():
    missing = set()
    for name in LOCK:
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        needed = [r for r in map(Requirement, requires) if r.marker is None or r.marker.evaluate({"extra": ""})]
        missing |= {f"{r.name} (for {name})" for r in needed if canonicalize_name(r.name) not in LOCK}
    assert not missing, f"requirements.lock lacks {sorted(missing)}"


def test_conda_environment_agrees():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = [line for entry in environment["dependencies"] if isinstance(entry, dict) for line in entry["pip"]]
    assert conda == ["python=3.11", "pip"], "environment.yml: Python and pip from conda, the rest from pyproject.toml"
    assert Version("3.11") in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert f"-e .[{','.join(LOCKED_EXTRAS)}]" in pip
    assert "-c requirements.lock" in pip, "environment.yml must take its exact versions from requirements.lock"
    assert all(line.startswith("-") for line in pip), f"environment.yml repeats a dependency of pyproject.toml: {pip}"


def test_version_and_licence_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    source = (ROOT / "peftkit" / "__init__.py").read_text()
    assert f'__version__ = "{PROJECT["version"]}"' in source
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def test_import_is_fast_and_loads_no_heavy_library():
    code = ("import json, sys, time; start = time.perf_counter(); import peftkit; end = time.perf_counter();"
            f"print(json.dumps([end - start, [name for name in {HEAVY!r} if name in sys.modules]]))")
    seconds, loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True))
    assert loaded == [], f"`import peftkit` loads {loaded}"
    assert seconds < 1, f"`import peftkit` takes {seconds:.2f} s"


def test_wheel_holds_every_file_of_the_package(tmp_path):
    """Built from a copy, so that the tree stays clean; three made-up files stand for the kinds of package data."""
    shutil.copytree(ROOT / "peftkit", tmp_path / "peftkit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("models/bundled/base/model.safetensors", "papers/study/tables/table.csv", "house.mplstyle"):
        (tmp_path / "peftkit" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "peftkit" / name).touch()
    expected = {str(path.relative_to(tmp_path)) for path in (tmp_path / "peftkit").rglob("*") if path.is_file()}
    subprocess.run([sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index",
                    "--quiet", "--wheel-dir", "dist"], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("peftkit-*.whl")
    missing = expected - set(zipfile.ZipFile(wheel).namelist())
    assert not missing, f"the wheel lacks (no __init__.py, or not in [tool.setuptools.package-data]): {sorted(missing)}"
