"""What is wrong with a data set: the error that stops a run, and counts of what was left out and why."""

from collections import Counter, defaultdict
from typing import Any

from dwtriton.core.errors import UserError
from dwtriton.core.text import listed

MAX_EXAMPLES = 3  # in a summary


class DataError(UserError):
    """A data set that cannot be used: names the file, the id and the remedy."""


class DataProblems:
    """Counts of what was left out or is doubtful, by kind, with examples, and warnings about the data as a whole.

    `counts` maps a kind ("box outside the image, annotation skipped") to its number; `examples` maps it to the names
    ("annotation 7 of image 3 (a.jpg)"); `left_out` counts images and annotations that are not used.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)
        self.left_out = 0
        self.warnings: list[str] = []

    def add(self, kind: str, example: str) -> None:
        """Count something that is left out."""
        self.left_out += 1
        self.note(kind, example)

    def note(self, kind: str, example: str) -> None:
        """Count something that is doubtful and used all the same."""
        self.counts[kind] += 1
        self.examples[kind].append(example)

    def warn(self, text: str) -> None:
        """Add a warning about the data as a whole."""
        self.warnings.append(text)

    def summary(self) -> list[str]:
        """The warnings, then one line for each kind; no lines if there are no problems."""
        kinds = [
            f"{count} x {kind}: {listed(self.examples[kind], MAX_EXAMPLES, count)}"
            for kind, count in self.counts.items()
        ]
        return [*self.warnings, *kinds]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values, with all examples."""
        kinds = {kind: {"count": count, "examples": self.examples[kind]} for kind, count in self.counts.items()}
        return {"warnings": self.warnings, "problems": kinds}
