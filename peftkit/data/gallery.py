"""A gallery of a task: pictures with question, answer and, if given, a model's predictions."""
import textwrap

import datasets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ..errors import PeftkitError
from .tasks import prompt_text


def gallery(rows: datasets.Dataset, *, prompt: str = "{question}", n: int = 8, columns: int = 4,
            predictions: dict[str, list[str]] | None = None) -> Figure:
    """Draw the first n rows of a split.

    prompt: the task's format string, shown above each picture. predictions: label -> answers in the order of the rows,
    shown below each picture next to the right answer. Returns the figure, closed, for the caller to save or show.
    Raises PeftkitError where there is nothing to show or a label has too few answers.
    """
    n = min(n, len(rows))
    if n < 1 or columns < 1:
        raise PeftkitError(f"the gallery has {n} pictures in {columns} columns; accepted: 1 or more of each")
    for label, values in (predictions or {}).items():
        if len(values) < n:
            raise PeftkitError(f"{label!r} has {len(values)} predictions for {n} pictures; accepted: one for each")
    lines = -(-n // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.4 * columns, (2.9 + 0.2 * len(predictions or ())) * lines),
                                squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for i, axis in zip(range(n), axes.flat):
        row = rows[i]
        axis.imshow(row["image"], interpolation="nearest")
        title = prompt_text(prompt, row)
        axis.set_title("\n".join(textwrap.wrap(title, 30)), fontsize=8)
        answers = {"answer": row["answers"][0]} | {label: values[i] for label, values in (predictions or {}).items()}
        caption = "\n".join(textwrap.fill(f"{label}: {value}", 32) for label, value in answers.items())
        axis.text(0.5, -0.04, caption, transform=axis.transAxes, ha="center", va="top", fontsize=8)
    plt.close(figure)
    return figure
