"""Phrases that messages share."""

import pytest

from dwtriton.core.text import first_of, listed, listed_lines, nearest


@pytest.mark.parametrize(
    ("items", "limit", "total", "text"),
    [
        ([], 3, None, ""),
        (["a"], 3, None, "a"),
        (["a", "b", "c"], 3, None, "a, b, c"),
        (["a", "b", "c"], 2, None, "a, b and 1 more"),
        (["a", "b"], 2, 9, "a, b and 7 more"),
        (["a"], 2, 1, "a"),
    ],
)
def test_long_lists_are_cut_and_the_rest_is_counted(items, limit, total, text):
    assert listed(items, limit, total) == text
    if total is None and items:
        assert listed_lines(items, limit) == text.replace(" and", ", and").split(", ")


def test_one_sentence_stands_for_all():
    assert first_of(["a"]) == "a"
    assert first_of(["a", "b", "c"], ": see d") == "a (and 2 more: see d)"


def test_the_nearest_candidate_is_suggested_if_one_is_close():
    assert nearest("trian", ["train", "predict"]) == "; did you mean 'train'?"
    assert nearest("xyz", ["train", "predict"]) == ""
