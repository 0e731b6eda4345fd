"""Committed notebooks: executed, but free of everything that differs from run to run or machine to machine."""
from pathlib import Path

import nbformat

KEPT_CELL_METADATA = ("tags",)


def normalize(source: Path, target: Path) -> None:
    """Write the executed notebook `source` to `target` as it is to be committed.

    papermill's cells and timings go, execution counts run from 1, stderr is dropped, cells are named by their position.
    """
    notebook = nbformat.read(source, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {name: cell.metadata[name] for name in KEPT_CELL_METADATA if cell.metadata.get(name)}
        if cell.cell_type == "code" and cell.execution_count:
            count += 1
            cell.execution_count = count
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = count
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
