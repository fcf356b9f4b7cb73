"""Phrases that messages share."""

import difflib
from collections.abc import Sequence


def one_line(text: str) -> str:
    r"""Return a text with `\n` in place of its line breaks, which names of strangers may hold."""
    return text.replace("\n", r"\n")


def listed(items: Sequence[str], limit: int, total: int | None = None) -> str:
    """Return "a, b, c and 4 more": at most `limit` items, then how many of `total` (default: of the items) are left."""
    left = (total or len(items)) - len(items[:limit])
    return ", ".join(items[:limit]) + (f" and {left} more" if left else "")


def listed_lines(items: Sequence[str], limit: int) -> list[str]:
    """Return at most `limit` items, a line each, then the line "and 4 more" if some are left."""
    return [*items[:limit], *([f"and {len(items) - limit} more"] if len(items) > limit else [])]


def first_of(items: Sequence[str], hint: str = "") -> str:
    """Return "a (and 4 more)" for items that are sentences; `hint` follows the number."""
    return items[0] + (f" (and {len(items) - 1} more{hint})" if len(items) > 1 else "")


def nearest(name: str, candidates: list[str], cutoff: float = 0.4) -> str:
    """Return `; did you mean 'x'?` for the candidate closest to `name`, or the empty string if none is close."""
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
