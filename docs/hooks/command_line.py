"""Writes the reference of the command line from the commands themselves."""

import html
import re

import typer

from noisylb.main import app

MARKER = "<!-- commands -->"
DEFAULT = re.compile(r"\s*\[(?:default: (?P<value>.*)|(?P<required>required))\]$")


def reference(app: typer.Typer = app, name: str = "noisylb") -> str:
    """Every command with its arguments and options, as Markdown.

    Args:
        app: the commands.
        name: what the user types for it.

    Returns:
        A heading, the usage and a definition list for each command, in the order of the help.
    """
    commands = typer.main.get_command(app).commands
    return "\n".join(_command(command, f"{name} {key}") for key, command in commands.items())


def _command(command, name):
    context = typer.Context(command, info_name=name)
    usage = command.get_usage(context).removeprefix("Usage: ")
    lines = [f"## {name}\n", f"{_prose(command.help)}\n", f"```\n{usage}\n```\n"]
    for parameter in command.params:
        if record := parameter.get_help_record(context):  # a hidden one has none
            term, text = record
            lines.append(f"`{term}`\n:   {_description(text)}\n")
    return "\n".join(lines)


def _description(text):
    """The help of an option, with its default in words."""
    default = DEFAULT.search(text)
    text = _prose(DEFAULT.sub("", text))
    if default and default["required"]:
        text += " Required."
    elif default:
        text += f" Default: `{default['value']}`."
    return text


def _prose(text):
    """Text in which nothing but what stands between backticks is markup."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_\[\]])", r"\\\1", html.escape(part, False)) for part in parts[::2]]
    return "`".join(parts)


def on_page_markdown(markdown, **_):
    """MkDocs calls it for every page.

    Args:
        markdown: of the page.

    Returns:
        The Markdown, with the reference in the place of its marker.
    """
    return markdown.replace(MARKER, reference()) if MARKER in markdown else markdown
