"""Features that all commands share: the script `dwtriton`, help, output for scripts, exit codes."""

import json
import re
import shlex
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from dwtriton import __main__ as dwtriton_command
from dwtriton import tune
from dwtriton.__main__ import COMMANDS, import_command
from dwtriton.config.load import config_names
from dwtriton.console import cli
from dwtriton.core.errors import UserError
from dwtriton.train import __main__ as train_command
from dwtriton.weights import __main__ as weights


@pytest.fixture
def script(call):
    """`dwtriton ...`, in this process."""
    return lambda *arguments: call(dwtriton_command, *arguments)


def actions_of(parser):
    return next((action.choices for action in parser._actions if action.dest == "action"), {})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command, call):
    module = import_command(command)
    code, printed, error = call(module, "--help")
    assert (code, error) == (0, "")
    assert "examples:" in printed
    assert cli.EXIT_CODES in printed
    parser = module.build_parser()
    for action, sub in actions_of(parser).items():
        code, printed, _ = call(module, action, "--help")
        assert code == 0
        assert "--quiet" in printed
        assert "--json" in printed
        assert f"dwtriton.{command} {action}" in sub.format_help().partition("examples:")[2]
    if not actions_of(parser):
        assert "--quiet" in printed
        assert "--json" in printed


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_one_that_the_parser_takes(command):
    parser = import_command(command).build_parser()
    lines = parser.format_help().partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) > 1
    for line in lines:
        without_remark = re.split(r"\s{3,}", line.strip())[0]
        words = shlex.split(re.sub(r"^source <\(|\)$| > .*", "", without_remark))
        start = words.index("dwtriton" if words[0] == "dwtriton" else f"dwtriton.{command}")
        start += words[start:][:2] == ["dwtriton", command]
        parser.parse_args(words[start + 1 :])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_explained(command):
    parser = import_command(command).build_parser()
    for one in (parser, *actions_of(parser).values()):
        for action in one._actions:
            assert action.help or action.dest == "action", f"{one.prog} {action.option_strings or action.dest}"


def test_the_script_lists_its_commands_without_heavy_imports():
    code = (
        "import sys; sys.argv = ['dwtriton', '--help']\n"
        "from dwtriton.__main__ import main\n"
        "code = main()\n"
        "sys.exit(code or bool({'torch', 'pydantic', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for command, what in COMMANDS.items():
        assert re.search(rf"^ +{command}\s+{what}$", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_script_is_installed_under_its_name():
    (entry,) = metadata.entry_points(group="console_scripts", name="dwtriton")
    assert entry.load() is dwtriton_command.script


def test_the_script_runs_a_command_as_its_module_does(script, call):
    assert script("train", "--cfg", "list", "--json") == call(train_command, "--cfg", "list", "--json")
    code, printed, _ = script("weights", "show", "--help")
    assert (code, "dwtriton.weights show" in printed) == (0, True)
    assert script("--version") == (0, f"dwtriton {metadata.version('dwtriton')}\n", "")


def test_the_script_names_the_nearest_command(script):
    assert script("evalute") == (
        2,
        "",
        "error: there is no command 'evalute'; did you mean 'evaluate'?; dwtriton --help lists them\n",
    )
    assert script() == (2, "", "error: name a command; dwtriton --help lists them\n")
    code, printed, error = script("--versoin")
    assert (code, printed, "unrecognized arguments: --versoin" in error) == (2, "", True)


def test_the_configs_as_one_line_of_json(call):
    code, printed, error = call(train_command, "--cfg", "list", "--json")
    assert (code, error, printed.count("\n")) == (0, "", 1)
    published = json.loads(printed)
    assert list(published) == config_names()
    assert (published["r50_1x"], published["shapes"]) == (41.5, None)
    assert call(train_command, "--cfg", "list", "--quiet") == (0, "", "")


def test_the_plan_of_a_run_as_one_line_of_json(shapes_root, finished, call):
    arguments = ["--cfg", finished[0] / "config.toml", "--data", shapes_root, "--plan"]
    code, printed, error = call(train_command, *arguments, "--json")
    assert (code, error, printed.count("\n")) == (0, "", 1)
    found = json.loads(printed)
    assert (found["epochs"], found["buckets"]) == (2, [[64, 96], [96, 64]])
    assert 6 <= found["steps"] <= 8
    assert call(train_command, *arguments, "--quiet") == (0, "", "")


def test_facts_about_a_checkpoint_as_one_line_of_json(finished, call):
    code, printed, error = call(weights, "show", finished[0] / "last.pt", "--json")
    assert (code, error, printed.count("\n")) == (0, "", 1)
    assert json.loads(printed)
    assert call(weights, "show", finished[0] / "last.pt", "--quiet") == (0, "", "")


def test_candidates_of_tuning_as_one_line_of_json(call):
    code, printed, error = call(tune, "--dry-run", "--dtype", "bfloat16", "--json")
    assert (code, error, printed.count("\n")) == (0, "", 1)
    (candidates,) = json.loads(printed)["configs"].values()
    assert {len(configs) > 1 for configs in candidates.values()} == {True}
    assert call(tune, "--dry-run", "--quiet") == (0, "", "")


def test_a_failed_training_prints_its_cause_even_with_quiet(finished, shapes_root, tmp_path, call, monkeypatch):
    def fit(trainer):
        raise train_command.NonFiniteLossError("loss_loc is nan at iteration 3")

    monkeypatch.setattr(train_command.Trainer, "fit", fit)
    code, printed, error = call(
        train_command, "--cfg", finished[0] / "config.toml", "--data", shapes_root, "--out", tmp_path / "run", "--quiet"
    )
    assert (code, printed, error) == (1, "", "error: loss_loc is nan at iteration 3\n")


def test_quiet_and_json_exclude_each_other(call):
    code, printed, error = call(train_command, "--cfg", "list", "--quiet", "--json")
    assert (code, printed) == (2, "")
    assert "not allowed with" in error


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (UserError("no such thing"), 2, "error: no such thing\n"),
        (KeyboardInterrupt(), 130, ""),
        (FileNotFoundError(2, "No such file", "a.jpg"), 1, "error: a.jpg: No such file\n"),
        (OSError("the disk is gone"), 1, "error: the disk is gone\n"),
        (MemoryError(), 1, "error: the machine has too little memory: lower data.batch_size or data.workers\n"),
    ],
)
def test_exit_codes(raised, code, message, capsys):
    def main():
        raise raised

    with pytest.raises(SystemExit) as exit_:
        cli.run(main)
    assert (exit_.value.code, capsys.readouterr().err) == (code, message)


def test_too_little_memory_for_a_tensor(capsys):
    with pytest.raises(SystemExit, match="1"):
        cli.run(lambda: torch.empty(2**60))
    error = capsys.readouterr().err
    assert error.startswith("error: the machine has too little memory: ")
    with pytest.raises(RuntimeError, match="not of memory"):
        cli.run(lambda: exec("raise RuntimeError('not of memory')"))


@pytest.mark.parametrize(
    "text", ["9" * 6 + "x64", "", "64", "64x", "x64", "-64x64", "64x64x64", "0x64", "48x64", "64.0x64"]
)
def test_sizes_are_read_strictly(text):
    with pytest.raises(UserError, match="--size is height x width in multiples of 32 pixels"):
        cli.read_size(text, 32)
    assert cli.read_size("64x96", 32) == (64, 96)
