"""`python -m dwtriton.config settings`: all keys of a config with their defaults and meanings."""

import argparse
import json
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from dwtriton.config.kinds import Section
from dwtriton.config.load import load_config
from dwtriton.config.schema import Config, ShapesConfig
from dwtriton.console import cli
from dwtriton.console.cli import print_text

EXAMPLES = {
    "settings": """\
  python -m dwtriton.config settings
  python -m dwtriton.config settings --cfg small    with the values of a config instead of the defaults
  python -m dwtriton.config settings --markdown     as docs/settings.md"""
}
SECTIONS = {"data.shapes": ShapesConfig}  # sections that are absent by default


class Setting(NamedTuple):
    """A key of the config, its value as TOML or JSON writes it, and its meaning."""

    key: str
    value: str
    meaning: str


def build_parser() -> argparse.ArgumentParser:
    parser, add_action = cli.parser_with_actions("dwtriton.config", "List the settings of a config.", EXAMPLES)
    settings = add_action("settings", run_settings, "print all keys with their defaults and meanings")
    which = "show the values of this config (default: r50_1x, whose values are the defaults)"
    cli.add_options(settings, "--cfg", required=False, default="r50_1x", help=which)
    settings.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    return arguments.run(arguments, cli.open_console(arguments))


def run_settings(arguments: argparse.Namespace, console: Console) -> int:
    """Print the settings. Raises UserError for a config that does not exist."""
    rows = list_settings(load_config(arguments.cfg))
    if arguments.markdown:
        print_text(console, markdown(rows))
    else:
        table = Table("key", "value", "meaning")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    cli.print_result(arguments, {row.key: {"value": json.loads(row.value), "meaning": row.meaning} for row in rows})
    return 0


def list_settings(cfg: Config) -> list[Setting]:
    """Return all settings, in the order of the schema."""
    return _settings(cfg, "")


def _settings(section: Section, prefix: str) -> list[Setting]:
    rows = []
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        key, value = f"{prefix}{name}", getattr(section, name)
        if not isinstance(value, Section):
            rows.append(Setting(key, json.dumps(values[name]), field.description or ""))
        below = value if isinstance(value, Section) else SECTIONS[key]() if key in SECTIONS else None
        rows += _settings(below, f"{key}.") if below is not None else []
    return rows


def markdown(rows: list[Setting]) -> str:
    """Return a table in Markdown for each section."""
    lines, section = [], None
    for key, value, meaning in rows:
        if (name := key.rpartition(".")[0]) != section:
            section = name
            lines += ["", f"## {section or 'top'}", "", "| key | default | meaning |", "|---|---|---|"]
        lines.append(f"| `{key}` | `{value}` | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(lines[1:])


if __name__ == "__main__":
    cli.run(main)
