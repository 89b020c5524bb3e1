"""The site: built without a warning, no dead link, tables in frames, nothing loaded from elsewhere.

`.ci/site` says nothing of a good site and fails at a bad one; README's links lead somewhere.
"""

import json
import re
import shutil
import subprocess

import code_blocks
import pytest
import site_checks

ROOT = code_blocks.ROOT
DEAD = {
    "no_such_page.md": "[page](no_such_page.md)",
    "#no-such-anchor": "[anchor of a page](limits.md#no-such-anchor)",
    "#no-such-heading": "[anchor of this page](#no-such-heading)",
    "no_such_picture.png": "![picture](no_such_picture.png)",
    "keras_noisylb.no_such_symbol": "[symbol][keras_noisylb.no_such_symbol]",
}
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
SOURCES = (".ci", "docs", "examples", "keras_noisylb", "models", "noisylb")


def build(folder):
    return subprocess.run(
        [folder / ".ci" / "site"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_a_dead_link_ends_the_build(tmp_path):
    pytest.importorskip("material", reason="needs the extra `docs`")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    good = build(tmp_path)
    assert (good.returncode, good.stdout) == (0, "")
    with (tmp_path / "docs" / "choosing.md").open("a", encoding="utf-8") as page:
        page.write("\n" + "\n\n".join(DEAD.values()) + "\n")
    bad = build(tmp_path)
    assert bad.returncode != 0
    for target in DEAD:
        assert re.search(f"WARNING.*{re.escape(target)}", bad.stdout), target


@pytest.mark.slow
def test_the_built_site(tmp_path):
    pytest.importorskip("material", reason="needs the extra `docs`")
    command = ["mkdocs", "build", "--quiet", "--site-dir", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    pages = site_checks.read(tmp_path)
    assert len(pages) > 40
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert sum(page.tables for page in pages.values()) > 40
    assert site_checks.broken_links(tmp_path, pages) == []
    assert site_checks.loaded_from_elsewhere(pages) == []
    assert [path for path, page in pages.items() if page.bare_tables] == []
    assert [path for path, page in pages.items() if page.raw_formulas] == []
    assert pages[tmp_path / "noise" / "index.html"].formulas > 100


SITE = {
    "index.html": '<a href="other/">a page</a> <a href="other/#here">an anchor</a> <a id="top">'
    '<a href="#top">itself</a> <a href="https://example.org/x">elsewhere</a><img src="a.png">'
    '<div class="scroll"><p><table></table></div> $$',
    "other/index.html": '<p id="here"><a href="..">up</a> <a href="/index.html">from the root</a>'
    r'<span class="arithmatex">\(x\)</span>',
}


def write(folder, pages):
    for name, text in pages.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "a.png").touch()
    return site_checks.read(folder)


def test_checks_pass_what_is_right(tmp_path):
    pages = write(tmp_path, SITE | {"index.html": SITE["index.html"].removesuffix(" $$")})
    assert site_checks.broken_links(tmp_path, pages) == []
    assert site_checks.loaded_from_elsewhere(pages) == []
    assert [(page.tables, page.bare_tables) for page in pages.values()] == [(1, 0), (0, 0)]
    assert [(page.formulas, page.raw_formulas) for page in pages.values()] == [(0, 0), (1, 0)]


@pytest.mark.parametrize(
    ("wrong", "target"),
    [
        ('<a href="none/">', "none/"),
        ('<a href="other/#none">', "other/#none"),
        ('<a href="#none">', "#none"),
        ('<img src="b.png">', "b.png"),
        ('<script src="../a.js"></script>', "../a.js"),
    ],
)
def test_a_broken_link_is_found(tmp_path, wrong, target):
    pages = write(tmp_path, SITE | {"index.html": SITE["index.html"] + wrong})
    assert site_checks.broken_links(tmp_path, pages) == [f"index.html: {target}"]


def test_what_is_loaded_from_elsewhere_is_found(tmp_path):
    wrong = (
        '<link rel="stylesheet" href="https://example.org/a.css"><img src="//example.org/a.png">'
    )
    pages = write(tmp_path, SITE | {"index.html": SITE["index.html"] + wrong})
    urls = ["https://example.org/a.css", "//example.org/a.png"]
    assert site_checks.loaded_from_elsewhere(pages) == urls


def test_a_table_without_a_frame_and_a_raw_formula_are_found(tmp_path):
    page = write(tmp_path, {"index.html": SITE["index.html"] + "<table></table>"}).popitem()[1]
    assert (page.tables, page.bare_tables) == (2, 1)
    assert (page.formulas, page.raw_formulas) == (0, 1)


@pytest.mark.parametrize("raw", [r"\(x\)", r"\frac 1 2", r"$$ x $$", "$x$"])
def test_a_raw_formula_is_found(tmp_path, raw):
    typeset = f'<p><code>{raw}</code><span class="arithmatex">{raw}</span></p>'
    assert write(tmp_path, {"index.html": typeset}).popitem()[1].raw_formulas == 0
    assert write(tmp_path, {"index.html": f"<p>{raw}</p>"}).popitem()[1].raw_formulas > 0


def test_formulas_in_the_sources_are_whole():
    pages = [ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    sources = {page.name: page.read_text(encoding="utf-8") for page in pages}
    for notebook in (ROOT / "examples" / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
        sources[notebook.name] = "\n\n".join(texts)
    assert len(sources) > 40
    assert {
        name: found for name, text in sources.items() if (found := site_checks.raw_tex(text))
    } == {}
    for wrong in ("$ x$ is", r"a \frac{1}{2}", "$$ x", r"`a` $x$ and y$"):
        assert all(site_checks.raw_tex(f"{text}\n\n{wrong}\n") for text in sources.values())


def test_links_of_the_readme():
    links = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
