"""The progress of long work, on a terminal and elsewhere."""

import io

from rich.console import Console

from dwtriton.console.progress import EVERY, progress


def printed(total, steps, seconds, **options):
    """What is printed of so many steps of so many seconds."""
    console = Console(file=io.StringIO(), width=100, **options)
    now = 0.0
    with progress(console, "street [1].mp4", total, lambda: now) as advance:
        for _ in range(steps):
            now += seconds
            advance()
    return console.file.getvalue()


def test_lines_now_and_then_with_the_time_left():
    lines = printed(total=50, steps=50, seconds=4).splitlines()
    assert len(lines) == 200 // 12  # the third step is the first that is EVERY seconds after the last line
    assert EVERY == 10
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
    assert "ETA" not in shown
