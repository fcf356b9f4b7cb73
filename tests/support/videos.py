"""Small videos made for tests."""

import numpy as np
import pytest


def make_video(path, frames, rate=5, rotation=0):
    """Write frames, uint8 [h, w, 3], as a camera would, to be turned by so many degrees counter-clockwise."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}) as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


def flat(level, size=(64, 96)):
    """A frame of one grey."""
    return np.full((*size, 3), level, dtype=np.uint8)


def noise(seed, size=(64, 96)):
    """A frame of coloured blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)
