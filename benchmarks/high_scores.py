"""How many tiles a dense pass does again by exact formulas, because a score in them is high; by NumPy, from logits.

A pass adds up its losses, or slopes, over the classes of a point, and does a tile again if for some point they come to
what one high score alone would add (`LOSS_OF_LOW_SCORE` and `SLOPE_OF_LOW_SCORE` of `dwtriton/kernels/negatives.py`).
"""

from functools import cache

import numpy as np

from benchmarks.cases import LOGITS
from dwtriton.kernels.negatives import LOSS_OF_LOW_SCORE, SLOPE_OF_LOW_SCORE
from dwtriton.kernels.trial import Setting

POINTS_AT_ONCE = 2**14


@cache
def high_points(setting: Setting, logits: str) -> dict[str, list[np.ndarray]]:
    """Whether a point makes a pass do its tile again: for each kernel a list over levels, [batch, points].

    Class logits are normal by LOGITS, those of the objectness have mean 0 and deviation 1; the same on every call.
    """
    mean, deviation = map(np.float32, LOGITS[logits])
    generator = np.random.default_rng(0)
    high: dict[str, list[np.ndarray]] = {"dense_forward": [], "dense_backward": []}
    for height, width in setting.level_sizes():
        left = setting.batch * height * width
        losses, slopes = [], []
        while left:
            count = min(left, POINTS_AT_ONCE)
            z = generator.standard_normal((count, setting.classes), np.float32) * deviation + mean
            u = generator.standard_normal((count, 1), np.float32)
            score = 1 / ((1 + np.exp(-z)) * (1 + np.exp(-u)))
            loss = score**2 * -np.log1p(-score)
            losses.append(loss.sum(1))
            slopes.append((2 * loss + score**3 / (1 - score)).sum(1))
            left -= count
        of_level = np.concatenate(losses), np.concatenate(slopes)
        for kernel, sums, limit in zip(high, of_level, (LOSS_OF_LOW_SCORE, SLOPE_OF_LOW_SCORE)):
            high[kernel].append((sums >= limit.value).reshape(setting.batch, -1))
    return high


def share_of_tiles(setting: Setting, logits: str, kernel: str, points: int) -> float:
    """Of a dense pass's tiles of so many points, the share that it does again."""
    tiles = []
    for level in high_points(setting, logits)[kernel]:
        if setting.layout == "channels_last":  # a tile may lie in two images
            level = level.reshape(1, -1)
        tiles.append(np.logical_or.reduceat(level, range(0, level.shape[1], points), 1).ravel())
    return float(np.concatenate(tiles).mean())
