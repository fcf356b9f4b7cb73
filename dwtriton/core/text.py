"""Wording that messages share."""

from collections.abc import Sequence


def listed(items: Sequence[str], limit: int, total: int | None = None) -> str:
    """`a, b, c and 4 more`: the first `limit` items, and how many of `total` (default: of the items) there are besides.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    hidden = (total or len(items)) - min(limit, len(items))
    return ", ".join(items[:limit]) + (f" and {hidden} more" if hidden else "")


def listed_lines(items: Sequence[str], limit: int) -> list[str]:
    """The same with an item a line: the first `limit` items, then perhaps `and 4 more`."""
    hidden = len(items) - limit
    return [*items[:limit], f"and {hidden} more"] if hidden > 0 else list(items)
