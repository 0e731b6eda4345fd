"""The committed notebooks are whole, light and portable: what nbval does not see (stripped counts, pictures, paths).

Each check takes a Notebook and returns its complaints, "cell 3: ..." with cells counted from 0 as nbval counts them.
"""
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
REQUIRED = {"00_start_here.ipynb", "02_methods.ipynb", "03a_zhou2024.ipynb", "03b_zhou2024.ipynb", "03c_zhou2024.ipynb",
            "04_huang2024.ipynb"}
MAX_BYTES = 400_000

PICTURES = ("image/png", "image/jpeg", "image/gif", "image/svg+xml")
ROOTS = "home|root|work|tmp|Users|usr|opt|mnt|media|var|private|content|srv|etc|proc|data|builds"
ABSOLUTE_PATH = re.compile(rf"(?<![\w.:/~-])/(?:{ROOTS})/[\w.-]+|\b[A-Z]:\\+(?:Users|Windows|Program)|file:///\S+")
EMBEDDED = re.compile(r"base64,[A-Za-z0-9+/=\s]+")
IMG_WITHOUT_ALT = re.compile(r"""<img\b(?![^>]*\balt\s*=\s*["'][^"'])[^>]*>""")


@dataclass(frozen=True)
class Notebook:
    """One notebook file: `content` as nbformat 4 nodes, `size` in bytes on disk."""
    name: str
    content: nbformat.NotebookNode
    size: int

    @classmethod
    def read(cls, path: Path) -> "Notebook":
        return cls(path.name, nbformat.read(path, as_version=4), path.stat().st_size)

    def code(self) -> Iterator[tuple[int, nbformat.NotebookNode]]:
        """(index, cell) of the code cells that automation runs: exercises tagged skip-execution are left out."""
        return ((i, c) for i, c in enumerate(self.content.cells)
                if c.cell_type == "code" and "skip-execution" not in tags(c))

    def outputs(self) -> Iterator[tuple[int, nbformat.NotebookNode]]:
        return ((i, output) for i, cell in enumerate(self.content.cells) for output in cell.get("outputs", []))


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def strings(value: object) -> Iterator[str]:
    """Every text inside nested JSON, pictures left out."""
    if isinstance(value, str):
        yield EMBEDDED.sub("", value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in PICTURES[:3]:
                yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def counts_run_from_1(notebook: Notebook) -> list[str]:
    return [f"cell {i}: execution count {cell.execution_count}, expected {expected}: run all cells in a fresh kernel"
            for expected, (i, cell) in enumerate(notebook.code(), start=1) if cell.execution_count != expected]


def outputs_are_present(notebook: Notebook) -> list[str]:
    return [] if any(cell.outputs for _, cell in notebook.code()) else ["no cell has an output: commit it executed"]


def checked_cells_have_outputs(notebook: Notebook) -> list[str]:
    return [f"cell {i}: tagged nbval-check-output, but has no output to compare"
            for i, cell in enumerate(notebook.content.cells)
            if "nbval-check-output" in tags(cell) and not cell.get("outputs")]


def stderr_is_empty(notebook: Notebook) -> list[str]:
    return [f"cell {i}: stderr {output.text[:80]!r}" for i, output in notebook.outputs()
            if output.output_type == "stream" and output.name == "stderr"]


def errors_are_absent(notebook: Notebook) -> list[str]:
    return [f"cell {i}: {output.ename}: {output.evalue[:80]}" for i, output in notebook.outputs()
            if output.output_type == "error"]


def paths_are_relative(notebook: Notebook) -> list[str]:
    cells = notebook.content.cells
    places = [("metadata", notebook.content.metadata), *((f"cell {i}", cell) for i, cell in enumerate(cells))]
    return [f"{place}: absolute path {match.group()!r}"
            for place, value in places for text in strings(value) for match in ABSOLUTE_PATH.finditer(text)]


def parameters_cell_is_one(notebook: Notebook) -> list[str]:
    found = [i for i, cell in enumerate(notebook.content.cells) if "parameters" in tags(cell)]
    injected = [i for i, cell in enumerate(notebook.content.cells) if "injected-parameters" in tags(cell)]
    problems = [] if len(found) == 1 else [f"{len(found)} cells tagged parameters (cells {found}), expected one"]
    return problems + [f"cell {i}: papermill's injected-parameters overrides PEFTKIT_TIER: remove it" for i in injected]


def kernel_is_python3(notebook: Notebook) -> list[str]:
    name = notebook.content.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"metadata: kernelspec {name!r}, expected 'python3'"]


def file_is_light(notebook: Notebook) -> list[str]:
    return [] if notebook.size < MAX_BYTES else [f"file: {notebook.size:,} bytes, limit {MAX_BYTES:,}"]


def pictures_have_alt_text(notebook: Notebook) -> list[str]:
    problems = []
    for i, output in notebook.outputs():
        data, metadata = output.get("data", {}), output.get("metadata", {})
        problems += [f"cell {i}: {kind} without alt text in the output's metadata" for kind in PICTURES
                     if kind in data and not (metadata.get("alt") or metadata.get(kind, {}).get("alt"))]
        problems += [f"cell {i}: HTML {tag[:60]!r} without alt text"
                     for tag in IMG_WITHOUT_ALT.findall(data.get("text/html", ""))]
    return problems


CHECKS = (counts_run_from_1, outputs_are_present, checked_cells_have_outputs, stderr_is_empty, errors_are_absent,
          paths_are_relative, parameters_cell_is_one, kernel_is_python3, file_is_light, pictures_have_alt_text)


# ── the committed notebooks ──

def test_notebooks_exist():
    missing = REQUIRED - {path.name for path in FOLDER.glob("*.ipynb")}
    assert not missing, f"notebooks/ lacks {sorted(missing)}"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook(path, check):
    problems = check(Notebook.read(path))
    assert not problems, "\n".join(f"notebooks/{path.name}, {problem}" for problem in problems)


# ── the checks themselves, on made-up notebooks ──

def picture(alt: str) -> nbformat.NotebookNode:
    return v4.new_output("display_data", {"image/png": "/tmp/AAAA"}, metadata={"image/png": {"alt": alt}})


def good() -> nbformat.NotebookNode:
    """A small notebook that every check accepts: cell 0 text, 1 parameters, 2 checked, 3 a picture, 4 an exercise."""
    return v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}, cells=[
        v4.new_markdown_cell("# Title, see https://example.org/home/page and $f: A \\to B$"),
        v4.new_code_cell("tier = 'laptop'", metadata={"tags": ["parameters"]}, execution_count=1),
        v4.new_code_cell("print(2)", metadata={"tags": ["nbval-check-output"]}, execution_count=2,
                         outputs=[v4.new_output("stream", name="stdout", text="2\n")]),
        v4.new_code_cell("show()", execution_count=3, outputs=[picture("one red square")]),
        v4.new_code_cell("...", metadata={"tags": ["skip-execution", "nbval-skip"]}),
    ])


def strip(content: nbformat.NotebookNode) -> None:
    for cell in content.cells[1:]:
        cell.outputs = []


def html(text: str) -> nbformat.NotebookNode:
    return v4.new_output("display_data", {"text/html": text})


Break = Callable[[nbformat.NotebookNode], object]
BROKEN: list[tuple[Callable, Break, str]] = [
    (counts_run_from_1, lambda n: n.cells[2].update(execution_count=7), "cell 2: execution count 7, expected 2"),
    (counts_run_from_1, lambda n: n.cells[3].update(execution_count=None), "cell 3: execution count None"),
    (outputs_are_present, strip, "no cell has an output"),
    (checked_cells_have_outputs, lambda n: n.cells[2].outputs.clear(), "cell 2: tagged nbval-check-output"),
    (stderr_is_empty, lambda n: n.cells[3].outputs.append(v4.new_output("stream", name="stderr", text="warn")),
     "cell 3: stderr 'warn'"),
    (errors_are_absent, lambda n: n.cells[3].outputs.append(v4.new_output("error", ename="KeyError", evalue="x")),
     "cell 3: KeyError: x"),
    (paths_are_relative, lambda n: n.cells[2].outputs[0].update(text="saved (/home/ann/run.json)"),
     "cell 2: absolute path '/home/ann'"),
    (paths_are_relative, lambda n: n.cells[3].outputs.append(html("C:\\Users\\ann")), "cell 3: absolute path"),
    (paths_are_relative, lambda n: n.metadata.update(papermill={"input_path": "/work/main/a.ipynb"}),
     "metadata: absolute path '/work/main'"),
    (parameters_cell_is_one, lambda n: n.cells[1].metadata.update(tags=[]), "0 cells tagged parameters"),
    (parameters_cell_is_one, lambda n: n.cells[3].metadata.update(tags=["parameters"]), "2 cells tagged parameters"),
    (parameters_cell_is_one, lambda n: n.cells[3].metadata.update(tags=["injected-parameters"]), "cell 3: papermill's"),
    (kernel_is_python3, lambda n: n.metadata.kernelspec.update(name="my-env"), "kernelspec 'my-env'"),
    (kernel_is_python3, lambda n: n.metadata.pop("kernelspec"), "kernelspec None"),
    (file_is_light, lambda n: n.cells[3].outputs.append(html("x" * MAX_BYTES)), "limit 400,000"),
    (pictures_have_alt_text, lambda n: n.cells[3].update(outputs=[picture("")]), "cell 3: image/png without alt text"),
    (pictures_have_alt_text, lambda n: n.cells[3].outputs.append(html("<img src='data:image/png;base64,AA' alt=''>")),
     "cell 3: HTML \"<img"),
]


def written(content: nbformat.NotebookNode, folder: Path) -> Notebook:
    path = folder / "made_up.ipynb"
    path.write_text(json.dumps(content))
    return Notebook.read(path)


def test_every_check_accepts_a_good_notebook(tmp_path):
    assert {check.__name__: check(written(good(), tmp_path)) for check in CHECKS} == {c.__name__: [] for c in CHECKS}


@pytest.mark.parametrize("check, spoil, complaint", BROKEN, ids=[f"{c.__name__}-{m[:24]}" for c, _, m in BROKEN])
def test_check_names_what_is_wrong(check, spoil, complaint, tmp_path):
    content = good()
    spoil(content)
    problems = check(written(content, tmp_path))
    assert len(problems) == 1 and complaint in problems[0], problems


def test_every_check_is_proven():
    assert {check for check, _, _ in BROKEN} == set(CHECKS)
