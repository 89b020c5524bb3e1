"""Shows the notebooks of `examples/notebooks` as pages, with their stored results.

Nothing is executed. A list of all of them, each with its first picture, replaces the marker.
"""

import base64
import json
import pathlib
import re

MARKER = "<!-- notebooks -->"
FOLDER = "notebooks"
PNG = "image/png"
DOCS_PAGE = re.compile(r"`docs/(\w+)\.md`")
OTHER_NOTEBOOK = re.compile(r"`(\d\d_\w+)`")


def convert(path: pathlib.Path) -> tuple[str, list[bytes]]:
    """A notebook as Markdown.

    Args:
        path: of the notebook.

    Returns:
        The Markdown, and the PNG pictures that it shows as `<notebook>/0.png`, `1.png` and so on.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts, pictures = [], []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(_linked(source, path.parent))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if PNG in data:
                parts.append(f"![Output of the code above]({path.stem}/{len(pictures)}.png)")
                pictures.append(base64.b64decode("".join(data[PNG])))
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"```text\n{text.rstrip()}\n```")
    parts.insert(1, f"Made from `examples/notebooks/{path.name}`, with the results stored in it.")
    return "\n\n".join(parts) + "\n", pictures


def _linked(source, folder):
    """Markdown in which names of pages and of other notebooks are links to them."""

    def other(match):
        known = (folder / f"{match[1]}.ipynb").exists()
        return f"[{match[0]}]({match[1]}.md)" if known else match[0]

    return OTHER_NOTEBOOK.sub(other, DOCS_PAGE.sub(r"[`\1`](../\1.md)", source))


def _title(markdown):
    return re.search(r"^# (.*)", markdown, re.MULTILINE)[1]


def gallery(pages: dict[str, tuple[str, list[bytes]]]) -> str:
    """A list of the notebooks.

    Args:
        pages: `{name: (Markdown, pictures)}`.

    Returns:
        Markdown: for each notebook a picture and its title, which lead to its page.
    """
    cards = []
    for name, (markdown, pictures) in pages.items():
        picture = f"![]({FOLDER}/{name}/0.png)" if pictures else ""
        cards.append(f"- [{picture}{_title(markdown)}]({FOLDER}/{name}.md)")
    return '<div class="gallery" markdown>\n\n' + "\n".join(cards) + "\n\n</div>"


def _pages(config):
    folder = pathlib.Path(config["config_file_path"]).parent / "examples" / "notebooks"
    return {path.stem: convert(path) for path in sorted(folder.glob("*.ipynb"))}


def on_config(config):
    """MkDocs calls it first: the notebooks follow their list in the navigation.

    Args:
        config: of MkDocs.

    Returns:
        The same with more navigation.
    """
    examples = next(section["Examples"] for section in config["nav"] if "Examples" in section)
    notebooks = next(entry["Notebooks"] for entry in examples if "Notebooks" in entry)
    notebooks += [f"{FOLDER}/{name}.md" for name in _pages(config)]
    return config


def on_files(files, config):
    """MkDocs calls it when it has listed the files.

    Args:
        files: the list.
        config: of MkDocs.

    Returns:
        The list with a page and pictures for each notebook.
    """
    from mkdocs.structure.files import File  # here, so that the tests need no MkDocs

    for name, (markdown, pictures) in _pages(config).items():
        files.append(File.generated(config, f"{FOLDER}/{name}.md", content=markdown))
        for number, content in enumerate(pictures):
            target = f"{FOLDER}/{name}/{number}.png"
            files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown, config, **_):
    """MkDocs calls it for every page.

    Args:
        markdown: of the page.
        config: of MkDocs.

    Returns:
        The Markdown, with the list in the place of its marker.
    """
    return markdown.replace(MARKER, gallery(_pages(config))) if MARKER in markdown else markdown
