"""`dwtriton completion`: print a script with which a shell completes commands, options, configs, keys and files."""

import argparse
from collections.abc import Iterator
from typing import Any

from dwtriton.__main__ import build_parser as dwtriton_parser
from dwtriton.config.load import config_names, flatten
from dwtriton.config.schema import Config
from dwtriton.console import cli
from dwtriton.core.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")
BASH_ENDING = """
# no space after the `=` of a config key, where the value follows; config files as well as names after --cfg
_dwtriton() {
  _shtab_dwtriton "$@"
  [[ "${COMPREPLY[0]-}" == *= ]] && compopt -o nospace 2>/dev/null
  if [[ "${COMP_WORDS[COMP_CWORD-1]}" == --cfg ]]; then
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -X '!*.toml' -- "${COMP_WORDS[COMP_CWORD]}")
  fi
  return 0
}
complete -o bashdefault -o default -F _dwtriton dwtriton
"""
EXAMPLES = """\
  source <(dwtriton completion bash)                                  this shell only; in ~/.bashrc, every shell
  dwtriton completion zsh > ~/.zfunc/_dwtriton                        ~/.zfunc must be in fpath
  dwtriton completion tcsh > ~/.dwtriton.csh                          then source it in ~/.tcshrc"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.completion", "Print a shell's completion script for `dwtriton`.", EXAMPLES)
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or tcsh")
    return parser


def completion_script(shell: str) -> str:
    """Return the script that shtab writes; the metavar of an option decides what its value completes to.

    No space follows the `=` of a config key, where the value comes next; each shell has its own way to say so.
    """
    try:
        import shtab
    except ModuleNotFoundError:
        raise UserError("completion scripts need shtab: pip install 'dwtriton[completion]'") from None
    configs = config_names()
    completers: dict[str, Any] = dict.fromkeys(("FILE", "DIR|FILE", "INPUT"), shtab.FILE) | {"DIR": shtab.DIRECTORY}
    keys = [f"{key}=" for key in flatten(Config())]
    words = {"NAME|FILE": configs, "NAME|FILE|list": [*configs, "list"], "KEY=VALUE": keys}
    if shell == "zsh":
        completers["KEY=VALUE"] = _zsh_function("_dwtriton_keys", f"compadd \"$@\" -S '' -- {' '.join(keys)}")
        for metavar, name in (("NAME|FILE", "_dwtriton_configs"), ("NAME|FILE|list", "_dwtriton_configs_or_list")):
            offered = f'compadd "$@" -- {" ".join(words[metavar])}; _files "$@" -g \'*.toml\''
            completers[metavar] = _zsh_function(name, offered)
    if shell == "tcsh":
        completers["KEY=VALUE"] = {"tcsh": f"({' '.join(keys)})/"}  # after this slash would be the suffix: none
    parser = dwtriton_parser(with_options=True)
    for action in _arguments(parser):
        if action.metavar in completers:
            action.complete = completers[action.metavar]
        action.choices = words.get(action.metavar, action.choices)
    script = shtab.complete(parser, shell)
    return script + BASH_ENDING if shell == "bash" else script


def _zsh_function(name: str, code: str) -> dict[str, Any]:
    """Return what shtab takes as the completer of an argument: a function, and its definition."""
    return {"zsh": name, "preamble": {"zsh": f"{name}() {{ {code} }}"}}


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subcommand in action.choices.values():
                yield from _arguments(subcommand)


def main() -> int:
    arguments = build_parser().parse_args()
    script = completion_script(arguments.shell)
    cli.print_result(arguments, {"script": script})
    if not (arguments.quiet or arguments.json):
        print(script)
    return 0


if __name__ == "__main__":
    cli.run(main)
