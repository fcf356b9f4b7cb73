"""Names of strangers on a terminal: nothing of them controls it, is taken for markup or stops a command."""

import ast
import io
import os
import re
import sys
from pathlib import Path

import pytest
from rich.table import Table

from dwtriton.console import cli
from dwtriton.console.progress import ProgressDisplay
from dwtriton.console.terminal import Terminal, printable
from dwtriton.core.errors import UserError
from tests.support.hostile_data import settings, write_coco
from tests.support.strict_streams import run_on_strict_streams

PACKAGE = Path(__file__).parents[2] / "dwtriton"
ESCAPES = "a\x1b]52;c;eA==\x07\x9b2J\r\x7f\u202eb\u2069"
CLASSES = (ESCAPES, "$_$", "a$b^$", "\ud800", "[bold]x[/bold] :smile:", "日本", "n" * 300, "x\nFORGED\n" * 9)
FILES = (
    "y\nFORGED.jpg",
    "i\x1b[2J.jpg",
    "caf\udce9.jpg",
    "x" * 251 + ".jpg",
    "日本.jpg",
    "$^$ [red].jpg",
    "e.jpg",
    "f.jpg",
)
CONTROLS = set(range(0x20)) - set(b"\n\t") | {0x7F}


def shown_raw(printed: str) -> set[str]:
    """Characters of a text that a terminal would obey."""
    return {character for character in printed if printable(character) != character}


def test_what_controls_a_terminal_is_shown_escaped():
    assert printable(ESCAPES) == r"a\x1b]52;c;eA==\x07\x9b2J\r\x7f\u202eb\u2069"
    assert printable("\ud800\udce9\u2028") == r"\ud800\udce9\u2028"
    assert printable(printable(ESCAPES)) == printable(ESCAPES)


def test_ordinary_text_of_any_script_stays_as_it_is():
    text = (
        "two\nlines\tand \u65e5\u672c \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 \U0001f469\u200d\U0001f680 \\x1b"
    )
    assert printable(text) == text


@pytest.mark.parametrize("on_terminal", [False, True])
def test_names_in_lines_tables_and_bars(on_terminal):
    name = f"[red]{ESCAPES}[/red] :smile:"
    console = Terminal(file=io.StringIO(), width=200, force_terminal=on_terminal, color_system=None)
    table = Table(name, title=name)
    table.add_row(name)
    cli.print_line(console, name)
    console.print(table)
    with ProgressDisplay(console, name, 2, steps_between_lines=1) as display:
        display.advance(figures=f"loss {name}")
        with display.stage(name, 1) as advance:
            advance()
    printed = console.file.getvalue()
    assert printed.count(printable(name)) >= 5
    own = {"\x1b", "\r"} if on_terminal else set()  # of rich, to redraw a bar
    assert shown_raw(printed) == own
    assert "\x1b]52" not in printed


def run(name: str, *arguments: object) -> tuple[int, str, str]:
    """Run a command whose output goes to strict streams of ASCII; nothing that it prints controls a terminal."""
    code, *texts = run_on_strict_streams(name, *arguments)
    for text in texts:
        assert not CONTROLS & set(text.encode("ascii")), arguments
        assert not shown_raw(text), arguments
        assert not re.search("^ *FORGED", text, re.MULTILINE), arguments
    return code, *texts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("strangers") / "caf\udce9 日本", CLASSES, FILES)


@pytest.fixture(scope="module")
def weights(data):
    """The checkpoint of a run whose folder, data and classes have hostile names."""
    out = data.with_name("run\udce9")
    more = settings(f"head.num_classes={len(CLASSES)}")
    code, printed, error = run("train", "--cfg", "r50_1x", "--data", data, "--out", out, *more)
    assert code == 0, (printed, error)
    assert r"\udce9" in printed
    return out / "last.pt"


COMMANDS = (
    "train --resume --out {run}",
    "evaluate --weights {run}/last.pt --force",
    "predict --weights {run}/last.pt {data}/val2017 --out {out} --threshold 0",
    "explain --weights {run}/last.pt --image {longest} --out {out}",
    "explain --weights {run}/last.pt --compare atss --object 0 --out {out}",
    "data check {data} --out {out}",
    "data tile {data} --size 32 --out {out}",
    "weights show {run}/last.pt",
)


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize(
    "command", [*COMMANDS, COMMANDS[1] + " --json", COMMANDS[3] + " --json", COMMANDS[-1] + " --json"]
)
def test_every_command_on_hostile_names(command, data, weights, tmp_path):
    places = {"data": data, "run": weights.parent, "out": tmp_path / "out", "longest": FILES[3]}
    words = [word.format(**places) for word in command.split()]
    code, printed, error = run(*words)
    assert (code, error) == (0, ""), printed
    assert printed
    if words[0] == "predict":
        assert len(list((tmp_path / "out").glob("*.jpg"))) == len(FILES)


def test_errors_show_names_escaped(data, tmp_path):
    code, _, error = run("predict", "--weights", "a.pt", ESCAPES)
    assert (code, error) == (2, f"error: {printable(ESCAPES)} does not exist, and as a pattern it matches nothing\n")
    code, _, error = run("data", "check", "--out", tmp_path, data, "a\x1b[2J")  # by a shell's pattern
    assert (code, r"unrecognized arguments: a\x1b[2J" in error) == (2, True)


def test_a_name_of_the_most_bytes_that_a_file_may_have(tmp_path):
    code, _, error = run("weights", "show", tmp_path / ("x" * 300))
    assert (code, "File name too long" in error, error.count("\n")) == (1, True, 1)


def test_an_error_is_shown_where_the_stream_lacks_its_characters(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", "strict")
    monkeypatch.setattr(sys, "stderr", stream)

    def main():
        raise UserError("no 日本 \udce9")

    with pytest.raises(SystemExit):
        cli.run(main)
    stream.flush()
    assert stream.buffer.getvalue() == rb"error: no \u65e5\u672c \udce9" + os.linesep.encode()


def test_all_output_goes_through_the_terminal():
    """No other place prints, and none makes a console or styled text of rich's own."""
    allowed = {"console/cli.py": {"print"}, "completion.py": {"print"}, "console/terminal.py": {"Console", "Text"}}
    for path in PACKAGE.rglob("*.py"):
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        found = calls & {"print", "Console", "Text"}
        assert found <= allowed.get(path.relative_to(PACKAGE).as_posix(), set()), path
