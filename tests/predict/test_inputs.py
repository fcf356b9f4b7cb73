"""Files, folders and patterns on a command line, and names for the pictures of them."""

import os
from pathlib import Path

import pytest

from dwtriton.core.errors import UserError
from dwtriton.data.images import BrokenImageError, read_image
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
def test_a_name_that_leads_to_no_file_is_an_error(name, folder):
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


def test_folders_name_what_cannot_be_read_and_pass_over_what_is_no_image(tmp_path):
    for name in ("a.jpg", "b.bmp", "c.tif", "d.jfif", "e.HEIC", "._a.jpg", "notes.txt", "._v.mp4", "v.mp4"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    images, videos = find_inputs([str(tmp_path)])
    assert [path.name for path in images] == ["a.jpg", "b.bmp", "c.tif", "d.jfif", "e.HEIC"]
    assert [path.name for path in videos] == ["v.mp4"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_ordinary_file_is_named_and_never_waited_for(make, tmp_path):
    make(tmp_path / "a.jpg")
    with pytest.raises(BrokenImageError, match=r"a\.jpg: is no ordinary file"):
        read_image(tmp_path / "a.jpg")
