"""The strict papermill wrapper: what it refuses, where it runs, what it leaves behind."""
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4
from papermill.exceptions import PapermillExecutionError

from peftkit.errors import PeftkitError
from peftkit.runner import check_parameters, execute_notebook

DEFAULTS = """tier = "laptop"  # how large
seeds = [42, 43]
rate = 0.1
steps = 3
plot = True
limit = None
betas = (
    0.9,  # first
    0.95,
)"""
LOOK = """import os, sys
from tqdm import tqdm
for _ in tqdm(range(3)):
    pass
print(os.path.basename(os.getcwd()), tier, steps)"""


def write(folder, *sources):
    folder.mkdir(exist_ok=True)
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "01_look.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def notebook(tmp_path):
    return write(tmp_path / "notebooks", DEFAULTS, LOOK)


@pytest.mark.parametrize(("name", "value"), [
    ("tier", "smoke"), ("seeds", [1]), ("seeds", (1, 2)), ("seeds", []), ("rate", 1), ("rate", 0.5), ("steps", 9),
    ("plot", False), ("limit", 3), ("limit", "x"), ("betas", [0.8, 0.9]),
])  # fmt: skip
def test_fitting_parameters(notebook, name, value):
    assert check_parameters(notebook, {name: value})["seeds"] == [42, 43]


@pytest.mark.parametrize(("name", "value", "expected"), [
    ("steps", "3", "must be int like 3, got str '3'"), ("steps", 3.0, "must be int like 3, got float 3.0"),
    ("steps", True, "must be int like 3, got bool True"), ("rate", True, "must be float"),
    ("rate", "1e-4", "must be float"), ("plot", 1, "must be bool"), ("plot", "true", "must be bool"),
    ("seeds", 42, "must be list"),
    ("seeds", ["42"], r"'seeds' of 01_look.ipynb must be list like \[42, 43\], got list \['42'\]"),
    ("tier", None, "must be str"), ("teir", "smoke", "unknown parameter of 01_look.ipynb 'teir'; did you mean 'tier'"),
])  # fmt: skip
def test_unfit_parameters_are_refused(notebook, tmp_path, name, value, expected):
    with pytest.raises(PeftkitError, match=expected):
        execute_notebook(notebook, tmp_path / "out.ipynb", {name: value})
    assert not (tmp_path / "out.ipynb").exists()


def test_missing_notebook(tmp_path):
    with pytest.raises(PeftkitError, match="no notebook at"):
        execute_notebook(tmp_path / "none.ipynb", tmp_path / "out.ipynb")


def test_run_and_manifest(notebook, tmp_path):
    before = Path.cwd()
    manifest = execute_notebook(notebook, tmp_path / "out" / "look.ipynb", {"tier": "smoke"}, timeout=60)
    assert Path.cwd() == before
    assert json.loads((tmp_path / "out" / "look.manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert manifest["status"] == "success" and manifest["notebook"] == "01_look.ipynb" and manifest["git_hash"] is None
    assert manifest["sha256"] == hashlib.sha256(notebook.read_bytes()).hexdigest()
    assert manifest["parameters"]["tier"] == "smoke" and manifest["parameters"]["seeds"] == [42, 43]
    assert manifest["versions"]["papermill"] and manifest["seconds"] > 0
    outputs = nbformat.read(tmp_path / "out" / "look.ipynb", 4).cells[-1].outputs
    assert [(output.name, output.text) for output in outputs] == [("stdout", "notebooks smoke 3\n")], "no bar on stderr"


def test_failure_is_in_the_manifest(tmp_path):
    path = write(tmp_path / "notebooks", "tier = 'laptop'", "1 / 0")
    with pytest.raises(PapermillExecutionError, match="ZeroDivisionError"):
        execute_notebook(path, tmp_path / "out.ipynb")
    assert json.loads((tmp_path / "out.manifest.json").read_text())["status"] == "failed"


def test_cell_timeout(tmp_path):
    path = write(tmp_path / "notebooks", "tier = 'laptop'", "import time; time.sleep(60)")
    with pytest.raises(Exception, match="(?i)timed out"):
        execute_notebook(path, tmp_path / "out.ipynb", timeout=2)


def test_plain_papermill_still_works(notebook, tmp_path):
    (tmp_path / "tier.yaml").write_text("tier: smoke\n")
    command = [sys.executable, "-m", "papermill", notebook, "out.ipynb", "-f", "tier.yaml", "--no-progress-bar"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    outputs = nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs
    assert "smoke 3" in "".join(output.text for output in outputs)
