"""What is wrong with a data set: the error that stops a run, and the count of what was left out and why."""

from collections import Counter

from dwtriton.core.errors import UserError
from dwtriton.core.text import listed

EXAMPLES_KEPT = 3


class DataError(UserError):
    """A data set that cannot be used: names the file, the id and the remedy."""


class DataProblems:
    """Counts what was left out, by kind, and keeps the first examples of each kind.

    `counts` maps a kind ("box outside the image, annotation skipped") to its number; `examples` maps it to the first
    few names ("annotation 7 of image 3 (a.jpg)").
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str) -> None:
        self.counts[kind] += 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES_KEPT:
            examples.append(example)

    def summary(self) -> list[str]:
        """One line for people for each kind; no lines if nothing was left out."""
        return [self._line(kind) for kind in self.counts]

    def _line(self, kind: str) -> str:
        count = self.counts[kind]
        return f"{count} x {kind}: {listed(self.examples[kind], EXAMPLES_KEPT, count)}"
