"""The list of all settings: a command, and a page that is its output."""

import json
from pathlib import Path

from dwtriton.config import __main__ as command
from dwtriton.config.load import flatten, load_config
from dwtriton.config.schema import Config

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_key_has_a_default_and_a_meaning(call):
    code, printed, error = call(command, "settings", "--json")
    assert (code, error) == (0, "")
    settings = json.loads(printed)
    assert flatten(Config()).keys() <= settings.keys()
    assert {"data.shapes.seed", "data.crowd", "schedule.warmup_iterations"} <= settings.keys()
    assert all(setting["meaning"] for setting in settings.values())
    assert settings["optimizer.lr"]["value"] == 0.01
    code, printed, _ = call(command, "settings", "--cfg", "small", "--json")
    assert json.loads(printed)["optimizer.lr"]["value"] == load_config("small").optimizer.lr
    assert "warm" in call(command, "settings")[1]


def test_the_page_is_what_the_command_prints(call):
    _, printed, _ = call(command, "settings", "--markdown")
    assert PAGE.read_text().endswith(printed)
