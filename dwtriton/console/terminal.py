"""Text on terminals: names of strangers are shown as they are, and what would control the terminal is shown escaped."""

import io
import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

# Controls except tab and newline, separators of lines and paragraphs, controls of writing direction, lone surrogates.
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return a text that cannot move a cursor, change a terminal or turn the order of letters: \x1b for an escape."""
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


class Terminal(Console):
    """rich's console without markup, highlighting and emoji codes, which prints strings as `printable` returns them.

    This holds for strings in tables and progress bars too, so a name needs no `Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as it will be printed. rich calls this for every string, to measure and to print it."""
        return super().render_str(printable(text), **options)


def escape_unknown_characters() -> None:
    """Let standard output and error show characters that their encoding lacks escaped, where they would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
