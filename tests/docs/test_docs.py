"""Every command on a page is one that its program takes, with config keys that exist."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from dwtriton.__main__ import COMMANDS, import_command
from dwtriton.config.load import config_names, load_config

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """Words of the commands in the blocks and the inline code of a page, without comments and continued lines."""
    text = page.read_text()
    blocks = [code for language, code in FENCE.findall(text) if language in ("", "sh")]
    inline = re.findall(r"`((?:python|torchrun|dwtriton|make|pip) [^`\n]+)`", FENCE.sub("", text))
    lines = "\n".join([*blocks, *inline]).replace("\\\n", " ").splitlines()
    return [command for line in lines if not line.startswith("[ ") for command in split_line(line)]


def split_line(line: str) -> list[list[str]]:
    """The commands of a line: what stands between pipes, redirections and brackets of the shell."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in words:
        if set(word) <= set("()<>|&;"):
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def own_command(words: list[str]) -> tuple[str, list[str]] | None:
    """(name, arguments) of a command of this package, however it is started."""
    if words[0] == "dwtriton" and words[1:2] != ["COMMAND"]:
        started = f"dwtriton.{words[1]}", words[2:]
    else:
        place = words.index("-m") + 1 if "-m" in words else len(words)
        started = "".join(words[place : place + 1]), words[place + 1 :]
    package, _, name = started[0].partition(".")
    return (name, started[1]) if package == "dwtriton" and name.isalpha() and name.islower() else None


FOUND = [
    pytest.param(*found, id=f"{page.name}: {' '.join(words)}")
    for page in PAGES
    for words in commands(page)
    if (found := own_command(words))
]


@pytest.mark.parametrize(("name", "arguments"), FOUND)
def test_commands_are_understood(name, arguments):
    parser = import_command(name).build_parser()
    parser.exit_on_error = False
    arguments = [word for word in arguments if word not in ("$resume", "...")]
    if arguments in (["--help"], []):
        return
    try:
        parsed = parser.parse_args(arguments)
    except (argparse.ArgumentError, SystemExit) as error:
        pytest.fail(f"{name} {arguments}: {error}")
    overrides = getattr(parsed, "set", None) or []
    cfg = getattr(parsed, "cfg", None)
    load_config(cfg if cfg in config_names() else "r50_1x", overrides)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_commands_name_what_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *arguments in commands(page):
        if program == "make":
            assert {word for word in arguments if "=" not in word} <= targets, arguments
        if program == "python" and arguments[0].endswith(".py"):
            assert (ROOT / arguments[0]).is_file(), arguments
        if program == "pip":
            extras = re.search(r"dwtriton\[([\w,]+)\]", " ".join(arguments))
            known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
            assert set(extras[1].split(",") if extras else ()) <= set(known)


def test_the_pages_show_every_command():
    assert {name for name, _ in (param.values for param in FOUND)} == set(COMMANDS)
