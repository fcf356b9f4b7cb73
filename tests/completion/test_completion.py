"""Completion scripts: the words that bash offers after the start of a command line."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from dwtriton import completion
from dwtriton.__main__ import COMMANDS
from dwtriton.config.load import config_names

# fills the variables of bash's programmable completion as the Tab key would, and prints what comes back
DRIVER = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function=$(complete -p dwtriton | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function dwtriton "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script():
    return completion.completion_script("bash")


@pytest.fixture
def complete(bash_script, tmp_path):
    if not shutil.which("bash"):
        pytest.skip("there is no bash")
    (tmp_path / "driver").write_text(bash_script + DRIVER)
    (tmp_path / "best.pt").touch()
    (tmp_path / "best-folder").mkdir()

    def run(*words):
        command = ["bash", "--norc", "driver", "dwtriton", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    return run


def test_bash_completes_commands_options_configs_keys_and_files(complete):
    assert complete("") == set(COMMANDS)
    assert complete("ex") == {"explain", "export"}
    assert complete("train", "--c") == {"--cfg"}
    assert complete("train", "--cfg", "") == {*config_names(), "list"}
    assert complete("summary", "--cfg", "x") == {"x101_64x4d_ms_2x"}
    assert "list" not in complete("summary", "--cfg", "")
    assert complete("train", "--cfg", "shapes", "--set", "optimizer.l") == {"optimizer.lr="}
    assert complete("weights", "from") == {"from-mmdet", "from-safetensors", "from-torchvision"}
    assert complete("weights", "from-mmdet", "--fo") == {"--force"}
    assert complete("tune", "--dtype", "b") == {"bfloat16"}
    assert complete("completion", "") == set(completion.SHELLS)
    assert complete("evaluate", "--weights", "best") == {"best.pt", "best-folder"}
    assert complete("train", "--data", "best") == {"best-folder"}
    assert complete("explain", "--out", "best") == {"best.pt", "best-folder"}


def test_bash_puts_no_space_after_a_key_and_offers_config_files(complete, bash_script, tmp_path):
    (tmp_path / "mine.toml").touch()
    assert complete("train", "--cfg", "mi") == {"mine.toml"}
    code = f"{bash_script}\ncompopt() {{ echo called $*; }}\n" + (
        'COMP_WORDS=(dwtriton train --set "$1"); COMP_CWORD=3; _dwtriton dwtriton "$1" --set; echo "${COMPREPLY[@]}"'
    )
    for word, expected in (("optimizer.l", "called -o nospace\noptimizer.lr=\n"), ("optimizer.x", "\n")):
        done = subprocess.run(["bash", "--norc", "-s", word], input=code, capture_output=True, text=True, check=True)
        assert done.stdout.replace("called +o filenames\n", "") == expected


START = {  # a short prompt, completion as docs/commands.md sets it up, and a `dwtriton` that only prints its arguments
    "zsh": "PS1='rea''dy '; fpath=($PWD $fpath); autoload -U compinit; compinit -u -D; dwtriton() { echo \"<$*>\" }",
    "tcsh": "set prompt='rea''dy '; source _dwtriton; alias dwtriton 'echo \"<\\!*>\"'",
}


@pytest.mark.parametrize("shell", START)
def test_zsh_and_tcsh_put_no_space_after_a_key_but_after_a_name(shell, tmp_path):
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell}")
    (tmp_path / "_dwtriton").write_text(completion.completion_script(shell))
    with terminal(shell, tmp_path) as type_line:
        type_line(START[shell], until="ready ")
        type_line("dwtriton train --set optimizer.l\t0.1", until="<train --set optimizer.lr=0.1>")
        type_line("dwtriton train --cfg r101_m\t--json", until="<train --cfg r101_ms_2x --json>")
        if shell == "zsh":
            (tmp_path / "mine.toml").touch()
            type_line("dwtriton train --cfg mi\t--json", until="<train --cfg mine.toml --json>")


@contextmanager
def terminal(shell, folder):
    """Run an interactive shell in a pseudo-terminal; the function types a line, and waits for what it shows."""
    process, end = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execvpe(shell, [shell, "-f"], {**os.environ, "TERM": "xterm", "HOME": str(folder)})

    def type_line(line, until):
        os.write(end, f"{line}\n".encode())
        shown, deadline = "", time.monotonic() + 20
        while until not in shown:
            ready, _, _ = select.select([end], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{until!r} is not in {shown!r}"
            shown += os.read(end, 65536).decode(errors="replace")

    try:
        yield type_line
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(end)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_shell_gets_a_script_with_every_command(shell, call):
    code, printed, error = call(completion, shell)
    assert (code, error) == (0, "")
    assert all(command in printed for command in COMMANDS)
    assert "optimizer.lr=" in printed


def test_quiet_and_unknown_shells(call):
    assert call(completion, "zsh", "--quiet") == (0, "", "")
    code, printed, error = call(completion, "fish")
    assert (code, printed) == (2, "")
    assert "invalid choice: 'fish'" in error


def test_without_shtab_the_extra_is_named(call, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, _, error = call(completion, "bash")
    assert (code, error) == (2, "error: completion scripts need shtab: pip install 'dwtriton[completion]'\n")
