"""Frames of videos: upright, of one size, in order, and an error where there are none or too few."""

import os
from contextlib import suppress
from fractions import Fraction

import numpy as np
import pytest
import torch

from dwtriton.core.files import write_file
from dwtriton.data.images import BrokenImageError
from dwtriton.predict.video import Video, write_video
from tests.support.videos import flat, make_video, noise


def levels(video):
    """Mean of each frame."""
    return [frame.float().mean().item() for frame in video.frames()]


def test_a_written_video_is_read_back_in_order(tmp_path):
    frames = [torch.full((3, 33, 47), level, dtype=torch.uint8) for level in (20, 200, 90, 140, 60)]
    write_file(tmp_path / "v.mp4", lambda file: write_video(file, iter(frames), Fraction(30000, 1001)))
    with Video(tmp_path / "v.mp4") as video:
        assert (video.rate, video.length) == (Fraction(30000, 1001), 5)
        read = list(video.frames())
    assert {tuple(frame.shape) for frame in read} == {(3, 34, 48)}  # an odd side grows by a pixel
    assert [frame[:, :32, :46].float().mean().item() for frame in read] == pytest.approx([20, 200, 90, 140, 60], abs=4)


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (-90, -1), (180, 2)])
def test_frames_are_turned_upright(rotation, turns, tmp_path):
    shown = noise(0, (64, 96))
    stored = np.ascontiguousarray(np.rot90(shown, -turns))
    with Video(make_video(tmp_path / "phone.mp4", [stored] * 2, rotation=rotation)) as video:
        frame = next(video.frames()).permute(1, 2, 0).numpy()
    assert frame.shape == shown.shape
    assert np.abs(frame.astype(int) - shown).mean() < 30  # of 255: compressed
    assert np.abs(frame.astype(int) - np.rot90(shown, 2)).mean() > 60


def test_a_change_of_size_within_a_video(tmp_path):
    first = make_video(tmp_path / "a.ts", [flat(60, (64, 96))] * 3).read_bytes()
    second = make_video(tmp_path / "b.ts", [flat(180, (96, 64))] * 3).read_bytes()
    (tmp_path / "both.ts").write_bytes(first + second)
    with Video(tmp_path / "both.ts") as video:
        shapes = [tuple(frame.shape) for frame in video.frames()]
    assert shapes == [(3, 64, 96)] * 6


def test_a_file_that_is_no_video_is_broken(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    for path in (tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "absent.mp4"):
        with pytest.raises(BrokenImageError, match=path.name):
            Video(path)


def test_sound_alone_is_broken(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    with pytest.raises(BrokenImageError, match=r"song\.mp4: there are no pictures in it"):
        Video(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_an_end_that_comes_too_early_is_told(suffix, tmp_path):
    content = make_video(tmp_path / f"whole.{suffix}", [noise(seed) for seed in range(12)]).read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(content[: len(content) * 6 // 10])
    with Video(cut) as video, pytest.raises(BrokenImageError, match=r"cut\.\w+: ends after \d+ of 12 frames"):
        list(video.frames())
    assert 3 <= video.read < 11


def test_what_can_be_read_whole_raises_nothing(tmp_path):
    for suffix in ("mp4", "mkv", "avi", "mov"):
        with Video(make_video(tmp_path / f"v.{suffix}", [flat(level) for level in (40, 120, 200)])) as video:
            assert levels(video) == pytest.approx([40, 120, 200], abs=5)
            assert video.length == 3


@pytest.mark.parametrize("name", ["tags.mkv", "tags.mp4"])
def test_metadata_that_are_no_text_do_not_matter(tmp_path, name):
    av = pytest.importorskip("av")
    path = tmp_path / name
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "a title of a film"
        stream = file.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for frame in [flat(60)] * 3:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"a title of", b"a \xff\xfe\xff\xed\xa0 of"))
    with Video(path) as video:
        assert len(list(video.frames())) == 3


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_damaged_videos_are_read_or_said_to_be_broken(tmp_path, suffix):
    content = make_video(tmp_path / f"whole{suffix}", [noise(i) for i in range(4)]).read_bytes()
    for seed in range(12):
        rng, damaged = np.random.default_rng(seed), bytearray(content)
        for place in rng.integers(0, len(content) if seed % 2 else 2000, 20):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / f"damaged{suffix}").write_bytes(damaged)
        with suppress(BrokenImageError), Video(tmp_path / f"damaged{suffix}") as video:
            assert all(frame.dtype == torch.uint8 for frame in video.frames())


def test_what_is_no_ordinary_file_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "fifo.mp4")
    with pytest.raises(BrokenImageError, match=r"fifo\.mp4: is no ordinary file"):
        Video(tmp_path / "fifo.mp4")
