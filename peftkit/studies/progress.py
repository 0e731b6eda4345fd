"""The live table of a grid: one bar, and on a terminal a line for each run that is being done."""
import shutil
import sys
from datetime import datetime, timedelta
from itertools import zip_longest

from tqdm import tqdm

from .queue import Queue, Running

LOG_SECONDS = 2.0  # between two states of the bar where it is not on a terminal
BAR = "{percentage:3.0f}%|{bar:20}| {elapsed}{postfix}"


class Table:
    """A view of `queue`, on stderr: done, running, left, failed and the clock time at which the end is expected."""

    def __init__(self, queue: Queue, hidden: bool = False):
        terminal = sys.stderr.isatty()
        self.queue, self.lines = queue, []
        self.room = shutil.get_terminal_size().lines - 2 if terminal and not hidden else 0
        self.bar = tqdm(total=queue.left, bar_format=BAR, disable=hidden, mininterval=0.1 if terminal else LOG_SECONDS)

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_) -> None:
        for display in [*self.lines, self.bar]:
            display.close()

    def show(self) -> None:
        """Show how things stand."""
        self.bar.set_postfix_str(summary(self.queue), refresh=False)
        self.bar.update(self.queue.statuses.total() - self.bar.n)
        texts = [self._describe(run) for _, run in sorted(self.queue.running.items())][:self.room]
        while len(self.lines) < len(texts):
            self.lines.append(tqdm(bar_format="{desc}", position=1 + len(self.lines), leave=False))
        for line, text in zip_longest(self.lines, texts, fillvalue=""):
            line.set_description_str(text)

    def _describe(self, run: Running) -> str:
        config = run.config
        names = [config["base"], config["method"], config["options"].get("connector"), config["task"], config["seed"]]
        times = f"since {_clock(run.since)}"
        if self.queue.estimates.rates:
            times += f", until about {_clock(run.since + self.queue.estimates.seconds(config))}"
        return f"  {' '.join(str(name) for name in names if name is not None)}: {times}"


def summary(queue: Queue) -> str:
    """How a grid stands, in one line."""
    failed = queue.statuses["error"]
    text = f"done {queue.statuses.total() - failed}, running {len(queue.running)}, left {queue.left}, failed {failed}"
    seconds = queue.seconds_left()
    return text if seconds is None else f"{text}, end about {datetime.now() + timedelta(seconds=seconds):%a %H:%M}"


def _clock(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%H:%M:%S}"
