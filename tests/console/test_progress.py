"""The progress of long work, on a terminal and elsewhere."""

import io
import re

import pytest

from dwtriton.console.progress import SECONDS_BETWEEN_LINES, ProgressDisplay, clock_time, progress
from dwtriton.console.terminal import Terminal


class Work:
    """A console without a terminal unless one is forced, and a clock that work moves."""

    def __init__(self, **options):
        self.console = Terminal(file=io.StringIO(), width=100, **options)
        self.now = 0.0

    def display(self, total, **options):
        return ProgressDisplay(self.console, "street [1].mp4", total, clock=lambda: self.now, **options)

    def do(self, steps, seconds, advance, **options):
        for _ in range(steps):
            self.now += seconds
            advance(**options)

    def lines(self):
        return self.console.file.getvalue().splitlines()


def printed(total, steps, seconds, **options):
    """Output for a number of steps that take some seconds each."""
    work = Work(**options)
    with work.display(total) as display:
        work.do(steps, seconds, display.advance)
    return work.console.file.getvalue()


def test_lines_now_and_then_with_the_time_left():
    lines = printed(total=50, steps=50, seconds=4).splitlines()
    assert len(lines) == 200 // 12  # the third step is the first that comes 10 seconds after the last line
    assert SECONDS_BETWEEN_LINES == 10
    assert lines[0] == "street [1].mp4  3/50  0.2/s  ETA 0:03:08"
    assert lines[-1] == "street [1].mp4  48/50  0.2/s  ETA 0:00:08"


def test_an_unknown_end_and_one_that_comes_late():
    assert printed(total=None, steps=3, seconds=5).splitlines() == ["street [1].mp4  2  0.2/s"]
    assert printed(total=1, steps=4, seconds=5).splitlines()[-1] == "street [1].mp4  4/1  0.2/s  ETA 0:00:00"


def test_short_work_prints_nothing():
    assert printed(total=9, steps=9, seconds=1) == ""
    assert printed(total=9, steps=9, seconds=100, quiet=True) == ""


def test_a_bar_on_a_terminal():
    shown = printed(total=4, steps=4, seconds=100, force_terminal=True)
    assert "street [1].mp4" in shown
    assert "4/4" in shown
    assert "ETA 0:00:00" in shown
    assert "/s" not in shown  # no line


def test_after_a_resume_lines_come_by_steps_and_the_time_of_stages_does_not_count():
    work = Work()
    display = work.display(20, done=10, steps_between_lines=4)
    work.now += 500  # before the work begins
    with display:
        work.do(2, 3, display.advance, what="epoch 2", figures="loss 0.5  90 images/s")
        with display.stage("evaluating", 7) as advance:
            work.do(7, 100, advance)
        work.do(4, 3, display.advance)
    assert work.lines() == ["epoch 2  12/20  loss 0.5  90 images/s  ETA 0:00:24", "epoch 2  16/20  0.3/s  ETA 0:00:12"]


def test_a_limit_of_time_bounds_the_eta():
    work = Work()
    with work.display(1000, time_limit=60) as display:
        work.do(1, 20, display.advance)
        work.now += 5
        display.advance(970)  # nearly all of them skipped
        work.do(1, 50, display.advance)
    etas = [line.partition("ETA ")[2] for line in work.lines()]
    assert etas == ["0:00:40", "0:00:00"]
    assert "971" not in "".join(work.lines())


def test_figures_and_stages_stand_below_the_bar():
    work = Work(force_terminal=True)
    with work.display(9) as display:
        work.do(3, 2, display.advance, what="epoch 1", figures="loss [0.5]")
        with display.stage("evaluating", 7) as advance:
            work.do(5, 100, advance)
            display.bars.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*\w", "", work.console.file.getvalue())
    assert re.search(r"epoch 1 +[━╺╸]+ 3/9 ETA 0:00:12 *\nevaluating [━╺╸]+ 5/7 *\nloss \[0.5\]", shown)
    assert "epoch 1  3/9" not in shown


def test_the_short_form_yields_the_function_that_counts(monkeypatch):
    monkeypatch.setattr("dwtriton.console.progress.SECONDS_BETWEEN_LINES", 0.0)
    console = Terminal(file=io.StringIO(), width=100)
    with progress(console, "images", 2) as advance:
        advance()
        advance()
    assert re.fullmatch(r"images  1/2  .*/s  ETA 0:00:0\d\nimages  2/2  .*/s  ETA 0:00:00\n", console.file.getvalue())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3599, "0:59:59"), (360_001, "100:00:01")]
)
def test_hours_minutes_and_seconds(seconds, text):
    assert clock_time(seconds) == text
