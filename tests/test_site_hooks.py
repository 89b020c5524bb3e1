"""Pages that the site makes: the index of the API, the command line, the notebooks."""

import importlib
import json

import code_blocks
import pytest
import typer

DOCS = code_blocks.ROOT / "docs"


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "hooks")
    return importlib.import_module


def test_the_index_has_one_line_for_each_public_symbol(hook):
    public_api = hook("public_api")
    pages = {page.name: page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md")}
    lines = hook("symbol_index").index(pages).splitlines()
    rows = [line for line in lines if line.startswith("| [")]
    listed = public_api.public_symbols() | public_api.public_symbols(public_api.EXTRA)
    assert len(rows) == len({id(symbol) for symbol in listed.values()}) > 60
    assert all(row.count(" | ") == 1 and len(row.split(" | ")[1]) > 15 for row in rows)
    for name in ("NoisyModel", "gradients.RULES", "tuning.GridSearch"):
        (row,) = [row for row in rows if f"[`{name}`]" in row]
        assert f"#keras_noisylb.{name})" in row


def test_the_index_quotes_the_first_sentence(hook):
    page = "# Layers\n\n::: keras_noisylb.GhostBatchNormalization\n\n::: keras_noisylb.no_layer\n"
    index = hook("symbol_index").index
    with pytest.raises(AttributeError, match="no_layer"):
        index({"layers.md": page})
    text = index({"layers.md": page.rpartition(":::")[0]})
    name = "keras_noisylb.GhostBatchNormalization"
    assert text.startswith("## Layers\n")
    assert f"| [`GhostBatchNormalization`](layers.md#{name}) | Batch normalisation over" in text


def program():
    app = typer.Typer()

    @app.command(help="Counts *a* <b>, as `*` says.")
    def count(
        what: str = typer.Argument(help="What to count."),
        limit: int = typer.Option(7, help="No more than [this]."),
        secret: int = typer.Option(1, hidden=True),
    ):
        pass

    app.command("other", help="Another one.")(lambda: None)
    return app


def test_the_reference_has_every_argument_and_default(hook):
    text = hook("command_line").reference(program(), "prog")
    assert "## prog count\n" in text and "## prog other\n" in text
    assert r"Counts \*a\* &lt;b&gt;, as `*` says." in text
    assert ":   What to count. Required.\n" in text
    assert ":   No more than \\[this\\]. Default: `7`.\n" in text
    assert "secret" not in text


def test_the_reference_of_noisylb_is_whole(hook):
    command_line = hook("command_line")
    text = command_line.on_page_markdown(f"Before\n\n{command_line.MARKER}\n")
    commands = typer.main.get_command(command_line.app).commands
    assert text.startswith("Before") and command_line.MARKER not in text
    for name, command in commands.items():
        part = text.split(f"## noisylb {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert f"`{parameter.opts[0]}" in part, (name, parameter.opts)


def notebook(folder, name, cells):
    (folder / f"{name}.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")


def test_a_notebook_becomes_a_page(hook, tmp_path):
    source = ["# Title\n", "\n", "See `docs/limits.md`, `02_more` and `03_none`."]
    picture = {"data": {"image/png": "cGljdHVyZQ==\n", "text/plain": ["<Figure>"]}}
    outputs = [{"text": ["one\n", "two\n"]}, picture, {"data": {"text/plain": ["42"]}}]
    cells = [
        {"cell_type": "markdown", "source": source},
        {"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": outputs},
    ]
    notebook(tmp_path, "01_first", cells)
    notebook(tmp_path, "02_more", cells)
    notebooks = hook("notebooks")
    text, pictures = notebooks.convert(tmp_path / "01_first.ipynb")
    assert text.startswith("# Title\n")
    assert "See [`limits`](../limits.md), [`02_more`](02_more.md) and `03_none`." in text
    assert "```python\nx = 1\nx\n```" in text
    assert "```text\none\ntwo\n```" in text and "```text\n42\n```" in text
    assert "](01_first/0.png)" in text and "<Figure>" not in text
    assert pictures == [b"picture"]
    cards = notebooks.gallery({"01_first": (text, pictures), "02_more": (text, [])})
    assert "- [![](notebooks/01_first/0.png)Title](notebooks/01_first.md)\n" in cards
    assert "- [Title](notebooks/02_more.md)\n" in cards


def test_tables_are_framed(hook):
    frame = hook("scrolling_tables").on_page_content
    html = frame("<p>a</p><table>\n<tr></tr></table><table></table>")
    assert html.count('<div class="scroll"') == html.count("</table></div>") == 2
    assert frame("<p>a</p>") == "<p>a</p>"
