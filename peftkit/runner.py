"""Papermill, strictly: what a notebook does not know, or knows as another type, is refused before anything runs.

The plain `papermill notebook.ipynb out.ipynb -f tier.yaml` works without this module; it only warns where this refuses.
"""
import ast
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import papermill

from . import __version__
from .errors import PeftkitError, choose
from .studies.workers import environment

PACKAGES = ("accelerate", "datasets", "matplotlib", "numpy", "pandas", "papermill", "peft", "torch", "transformers")
KERNEL = "python3"


def execute_notebook(
    path: str | Path, output: str | Path, parameters: Mapping | None = None, timeout: int = 600
) -> dict:
    """Run a notebook in its own folder and write it to `output`, with a manifest in `<output stem>.manifest.json`.

    `parameters` replace defaults of the notebook's parameters cell; `timeout` is in seconds and holds for each cell.
    Returns the manifest: notebook, its sha256, status, parameters, versions, git_hash (None outside git), seconds.
    Raises `PeftkitError` for an unknown or wrongly typed parameter; papermill's errors pass through, and the manifest
    then says "failed".
    """
    path, output = Path(path).resolve(), Path(output).resolve()
    parameters = dict(parameters or {})
    defaults = check_parameters(path, parameters)
    output.parent.mkdir(parents=True, exist_ok=True)
    versions = {"python": sys.version.split()[0], "peftkit": __version__, **{name: version(name) for name in PACKAGES}}
    manifest = {
        "notebook": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "status": "failed",
        "parameters": defaults | parameters,
        "versions": versions,
        "git_hash": git_hash(path.parent),
    }
    started = time.perf_counter()
    try:
        with environment({"TQDM_DISABLE": "1"}):
            papermill.execute_notebook(
                path,
                output,
                parameters,
                kernel_name=KERNEL,
                cwd=path.parent,
                progress_bar=False,
                execution_timeout=timeout,
                coalesce_streams=True,
            )
        manifest["status"] = "success"
    finally:
        manifest["seconds"] = round(time.perf_counter() - started, 1)
        output.with_suffix(".manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def check_parameters(path: Path, parameters: Mapping) -> dict:
    """Return the notebook's default parameters; raise `PeftkitError` if `parameters` do not fit them.

    An int will do for a float, a list for a tuple; a default of None, or one that is no literal, takes anything.
    """
    if not path.is_file():
        raise PeftkitError(f"no notebook at {path}")
    found = papermill.inspect_notebook(path)
    defaults = {name: _literal(entry["default"]) for name, entry in found.items()}
    for name, value in parameters.items():
        choose(f"parameter of {path.name}", name, defaults)
        if not _fits(value, defaults[name]):
            kinds = f"{type(defaults[name]).__name__} like {defaults[name]!r}, got {type(value).__name__} {value!r}"
            raise PeftkitError(f"parameter {name!r} of {path.name} must be {kinds}")
    return defaults


def git_hash(folder: Path) -> str | None:
    """The commit that `folder` is checked out at, or None outside git."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True)
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _literal(source: str):
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return None


def _fits(value, default) -> bool:
    if default is None:
        return True
    if isinstance(value, bool) or isinstance(default, bool):
        return type(value) is type(default)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple)) and all(_fits(item, default[0]) for item in value if default)
    return isinstance(value, type(default))
