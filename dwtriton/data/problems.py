"""What is wrong with a data set: the error that stops a run, and counts of what was left out and why."""

from collections import Counter, defaultdict

from dwtriton.core.errors import UserError
from dwtriton.core.text import listed

MAX_EXAMPLES = 3


class DataError(UserError):
    """A data set that cannot be used: names the file, the id and the remedy."""


class DataProblems:
    """Counts of what was left out or is doubtful, by kind, with the first examples of each kind.

    `counts` maps a kind ("box outside the image, annotation skipped") to its number; `examples` maps it to the first
    few names ("annotation 7 of image 3 (a.jpg)").
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, example: str) -> None:
        """Count a problem."""
        self.counts[kind] += 1
        if self.counts[kind] <= MAX_EXAMPLES:
            self.examples[kind].append(example)

    def summary(self) -> list[str]:
        """One line for each kind; no lines if there are no problems."""
        return [
            f"{count} x {kind}: {listed(self.examples[kind], MAX_EXAMPLES, count)}"
            for kind, count in self.counts.items()
        ]
