"""Texts in any script: a font that the machine has, or escapes; never an empty square."""

import io
import warnings

import pytest
import torch
from matplotlib.figure import Figure

from dwtriton.console import fonts
from dwtriton.console.drawing import draw_boxes
from dwtriton.console.fonts import DEFAULT, drawable

STIX = DEFAULT.with_name("STIXGeneral.ttf")  # comes with matplotlib


def only_in_stix():
    return chr(min(fonts._characters(STIX) - fonts._characters(DEFAULT) - set(range(0xE000, 0xF900))))


def test_the_usual_font_draws_what_it_has():
    for text in ("box 0.87", "Größe, фото\nδ", ""):
        assert drawable(text) == (text, DEFAULT)


def test_another_font_of_the_machine_draws_what_the_usual_one_lacks(monkeypatch):
    character = only_in_stix()
    text, font = drawable(f"a {character}")
    assert text == f"a {character}"
    assert ord(character) in fonts._characters(font)
    monkeypatch.setattr(fonts, "_machine_fonts", lambda: [STIX, DEFAULT.with_name("gone.ttf")])
    assert drawable(f"{character} 日") == (rf"{character} \u65e5", STIX)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("日本語 1", r"\u65e5\u672c\u8a9e 1"), ("a\x00b\x1b", r"a\x00b\x1b"), ("\U0010fffd", r"\U0010fffd")],
)
def test_characters_that_no_font_has_are_escaped_and_nothing_warns(text, shown, monkeypatch):
    monkeypatch.setattr(fonts, "_machine_fonts", lambda: [STIX])
    escaped, font = drawable(text)
    assert escaped == shown
    figure = Figure(figsize=(2, 1))
    figure.suptitle(escaped, font=font, parse_math=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())
        drawn, plain = (
            draw_boxes(torch.zeros(3, 200, 400, dtype=torch.uint8), torch.tensor([[9, 99, 50, 150]]), [0], [name])
            for name in (text, escaped)
        )
    assert torch.equal(drawn, plain)
