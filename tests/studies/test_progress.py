"""The live table says how a grid stands."""
import io

import pytest

from peftkit.studies.outcome import Outcome
from peftkit.studies.progress import Table
from peftkit.studies.queue import Queue

from .runs import config


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_it_counts_and_names_what_runs_on_a_terminal_alone(monkeypatch, terminal):
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stderr", screen)
    queue = Queue([config("", seed=seed, connector="tuned") for seed in range(5)], workers=2)
    with Table(queue) as table:
        queue.take("v"), queue.take("w")
        table.show()
        assert "end about" not in screen.getvalue()
        queue.end("v", Outcome({}, "done", 1.0, 3600.0))
        queue.end("w", Outcome({}, "error"))
        queue.take("v")
        table.bar.mininterval = 0
        table.show()
    text = screen.getvalue()
    assert " 40%|" in text and "done 1, running 1, left 2, failed 1, end about " in text
    assert ("tiny lora tuned vizwiz 2: since " in text) == ("until about" in text) == terminal


def test_a_hidden_table_says_nothing(monkeypatch):
    screen = Screen(True)
    monkeypatch.setattr("sys.stderr", screen)
    queue = Queue([config("")])
    with Table(queue, hidden=True) as table:
        queue.take("v")
        table.show()
    assert not screen.getvalue()
