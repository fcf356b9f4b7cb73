"""Fonts for texts in any script: one that the machine has, or else characters that no font has are shown escaped."""

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

DEFAULT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
PLACEHOLDERS = "Last Resort"  # a family that has a box for every character
REGULAR = ("normal", 400, "regular")


def drawable(text: str) -> tuple[str, Path]:
    r"""Return a text and the file of a font to draw it in: DejaVu Sans, or the font that has most of its characters.

    Those that the font lacks become escapes such as \u65e5.
    """
    needed = set(map(ord, text)) - {ord("\n")}
    best = DEFAULT
    if not needed <= _characters(best):
        best = max([best, *_machine_fonts()], key=lambda font: len(needed & _characters(font)))
    known = _characters(best) | {ord("\n")}
    return "".join(character if ord(character) in known else ascii(character)[1:-1] for character in text), best


@cache
def _machine_fonts() -> list[Path]:
    """The upright regular fonts of the machine, one a family."""
    families = {
        entry.name: Path(entry.fname)
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal" and entry.weight in REGULAR and not entry.name.startswith(PLACEHOLDERS)
    }
    return [families[name] for name in sorted(families)]


@cache
def _characters(font: Path) -> frozenset[int]:
    """Code points that a font has; none if it cannot be drawn at any size, or is gone."""
    try:
        face = FT2Font(str(font))
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(face.get_charmap()) if face.scalable else frozenset()
