"""What stands behind the names on a command line, and how images of many sizes become batches of one size."""

from pathlib import Path

import pytest
import torch

from dwtriton.core.errors import UserError
from dwtriton.data.coco import Sample
from dwtriton.inference.inputs import MAX_WAITING_BATCHES, batches_of_one_size
from dwtriton.predict.inputs import find_inputs, picture_names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with some files."""
    for name in ("b.jpg", "a.PNG", "note.txt", "deep/er/c.webp", "deep/v.mp4", "deep/.hidden", "[1].jpg", "other.bin"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "images", "videos"),
    [
        (["b.jpg", "a.PNG"], ["b.jpg", "a.PNG"], []),
        (["deep"], ["deep/er/c.webp"], ["deep/v.mp4"]),
        (["."], ["[1].jpg", "a.PNG", "b.jpg", "deep/er/c.webp"], ["deep/v.mp4"]),
        (["*.jpg"], ["[1].jpg", "b.jpg"], []),
        (["[1].jpg"], ["[1].jpg"], []),  # a file that looks like a pattern
        (["d*"], ["deep/er/c.webp"], ["deep/v.mp4"]),  # a folder that matches is searched
        (["**/*.webp"], ["deep/er/c.webp"], []),
        (["other.bin"], ["other.bin"], []),  # who names it means it
        (["b.jpg", "./b.jpg", "*.jpg"], ["b.jpg", "[1].jpg"], []),  # each once
        (["deep/v.mp4", "b.jpg"], ["b.jpg"], ["deep/v.mp4"]),
    ],
)
def test_files_folders_and_patterns(names, images, videos, folder):
    assert find_inputs(names) == (list(map(Path, images)), list(map(Path, videos)))


@pytest.mark.parametrize("name", ["absent", "absent/*.jpg", "*.tif", "empty", "deep/er/*.jpg"])
def test_a_name_behind_which_is_nothing_is_an_error(name, folder):
    with pytest.raises(UserError) as error:
        find_inputs(["b.jpg", name])
    assert name in str(error.value)


def test_pictures_get_names_of_their_own():
    paths = ["x/a.jpg", "y/a.jpg", "x/a.png", "x/a-2.jpg", "x/a.mp4", "y/a.mov", "x/b.tar.jpg"]
    names = picture_names(map(Path, paths))
    assert [names[Path(path)] for path in paths] == [
        "a.jpg",
        "a-2.jpg",
        "a-3.jpg",
        "a-2-2.jpg",
        "a.mp4",
        "a-4.mp4",
        "b.tar.jpg",
    ]
    assert len(set(names.values())) == len(paths)


def samples(sizes):
    for number, (height, width) in enumerate(sizes):
        yield Sample(torch.zeros(3, height, width, dtype=torch.uint8), {}, number, "", (1.0, 1.0))


def test_a_batch_pads_to_one_size_and_is_full_if_it_can_be():
    sizes = [(30, 60), (90, 60), (32, 64), (20, 40), (96, 64), (70, 33), (1, 33)]
    batches = [[e.image_id for e in batch] for batch in batches_of_one_size(samples(sizes), 2, 32)]
    assert batches == [[0, 2], [1, 4], [3, 6], [5]]


def test_few_examples_wait_however_many_sizes_there_are():
    sizes = [(32 * (1 + number % 50), 32) for number in range(200)]
    asked = 0

    def counted():
        nonlocal asked
        for sample in samples(sizes):
            asked += 1
            yield sample

    given, batch = [], 3
    for found in batches_of_one_size(counted(), batch, 32):
        given += [sample.image_id for sample in found]
        assert len({tuple(sample.image.shape) for sample in found}) == 1
        assert asked - len(given) < MAX_WAITING_BATCHES * batch
    assert sorted(given) == list(range(200))
