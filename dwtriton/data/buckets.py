"""Buckets: a small set of sizes that training batches are padded to, so that few graphs are compiled."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

Size = tuple[int, int]  # (height, width) in pixels


def padded_size(sizes: Iterable[Size], divisor: int) -> Size:
    """The smallest size that holds all of `sizes` and whose sides are multiples of `divisor`."""
    return tuple(-(-max(side) // divisor) * divisor for side in zip(*sizes))


def fits(size: Size, bucket: Size) -> bool:
    """Whether `bucket` holds `size`."""
    return size[0] <= bucket[0] and size[1] <= bucket[1]


def smallest_bucket(size: Size, buckets: Sequence[Size]) -> Size:
    """The bucket of the smallest area that holds `size`; `size` itself if there are no buckets.

    Raises ValueError if none holds it.
    """
    if not buckets:
        return size
    holding = [bucket for bucket in buckets if fits(size, bucket)]
    if not holding:
        raise ValueError(f"no bucket of {list(buckets)} holds {size}")
    return min(holding, key=area)


def choose_buckets(batches: Counter[Size], limits: Iterable[Size], count: int) -> list[Size]:
    """Choose at most `count` buckets that hold every size of `batches` and `limits`, with little padding.

    `batches` has the number of batches of each size; `limits` are sizes that other epochs may need. Each size starts as
    a bucket of its own; then the two whose union adds the fewest pixels over all batches are joined, until `count` are
    left.
    """
    numbers = Counter(dict.fromkeys(limits, 0))
    numbers.update(batches)
    sizes = np.array(sorted(numbers))  # [N, 2]
    weights = np.array([numbers[size] for size in sorted(numbers)])  # [N]
    while len(sizes) > max(count, 1):
        joined = np.maximum(sizes[:, None], sizes).prod(2)  # [N, N] area of the union of each pair
        grown = (joined - sizes.prod(1)) * weights  # [N, N] pixels that the union adds to batches of the second one
        rows, columns = np.triu_indices(len(sizes), 1)
        best = np.argmin((grown + grown.T)[rows, columns])
        first, second = rows[best], columns[best]
        sizes[first] = np.maximum(sizes[first], sizes[second])
        weights[first] += weights[second]
        sizes, weights = np.delete(sizes, second, 0), np.delete(weights, second)
    return sorted({tuple(size) for size in sizes.tolist()})


def mean_area(batches: Counter[Size], buckets: Sequence[Size]) -> float:
    """Mean area in pixels of batches that are padded to their buckets."""
    pixels = sum(area(smallest_bucket(size, buckets)) * number for size, number in batches.items())
    return pixels / batches.total()


def area(size: Size) -> int:
    """Height x width."""
    return size[0] * size[1]
