"""Executed notebooks are cleaned before they are committed."""
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from peftkit.notebooks import normalize


def test_normalize_drops_what_differs_between_machines(tmp_path):
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell("tier = 1", execution_count=3, metadata={"tags": ["parameters"], "papermill": {"duration": 1.0}}),
        new_code_cell("tier = 2", execution_count=4, metadata={"tags": ["injected-parameters"]}),
        new_code_cell("tier", execution_count=5, outputs=[
            new_output("stream", name="stderr", text="noise"),
            new_output("execute_result", data={"text/plain": "2"}, execution_count=5)]),
    ]
    notebook = new_notebook(cells=cells, metadata={"papermill": {"input_path": "/somewhere"}})
    nbformat.write(notebook, tmp_path / "in.ipynb")
    normalize(tmp_path / "in.ipynb", tmp_path / "deep" / "out.ipynb")
    clean = nbformat.read(tmp_path / "deep" / "out.ipynb", as_version=4)
    assert [cell.id for cell in clean.cells] == ["cell-00", "cell-01", "cell-02"]
    assert [cell.get("execution_count") for cell in clean.cells] == [None, 1, 2]
    assert clean.cells[1].metadata == {"tags": ["parameters"]}
    assert [output.output_type for output in clean.cells[2].outputs] == ["execute_result"]
    assert clean.cells[2].outputs[0].execution_count == 2
    assert "somewhere" not in (tmp_path / "deep" / "out.ipynb").read_text()
