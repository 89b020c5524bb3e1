"""Writes the index of the API: one line for each public symbol, the first of its docstring.

The groups are the pages of the API and the order is theirs, so the index needs no care.
"""

import inspect
import pathlib
import re

import public_api

MARKER = "<!-- symbols -->"
ENTRY = re.compile(r"^::: (\S+)", re.MULTILINE)


def index(pages: dict[str, str]) -> str:
    """The index as Markdown.

    Args:
        pages: `{file name: Markdown}` of the pages with entries, in order.

    Returns:
        A heading and a table for each page that has entries of public symbols.
    """
    listed = public_api.public_symbols() | public_api.public_symbols(public_api.EXTRA)
    public = {id(symbol) for symbol in listed.values()}
    parts = []
    for page, markdown in pages.items():
        rows = []
        for entry in ENTRY.finditer(markdown):
            symbol = public_api.resolve(name := entry[1])
            if id(symbol) in public:
                line = _first_line(symbol, markdown[entry.end() :])
                short = name.removeprefix(f"{public_api.PACKAGE}.")
                rows.append(f"| [`{short}`]({page}#{name}) | {line} |")
        if rows:
            title = re.search(r"^# (.*)", markdown, re.MULTILINE)[1]
            parts.append(f"## {title}\n\n| name | is |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _first_line(symbol, below):
    """What the docstring begins with; a variable has none, but a sentence below its entry."""
    documented = inspect.isclass(symbol) or inspect.isroutine(symbol)
    text = inspect.getdoc(symbol) if documented else below
    return " ".join(text.strip().split("\n\n")[0].split()).replace("|", "\\|")


def on_page_markdown(markdown, page, config, **_):
    """MkDocs calls it for every page.

    Args:
        markdown: of the page.
        page: of MkDocs.
        config: of MkDocs.

    Returns:
        The Markdown, with the index in the place of its marker.
    """
    if MARKER not in markdown:
        return markdown
    folder = pathlib.Path(config["docs_dir"]) / "api"
    order = re.findall(r"\]\((\w+\.md)\)", markdown)
    pages = {name: (folder / name).read_text(encoding="utf-8") for name in order}
    return markdown.replace(MARKER, index(pages))
