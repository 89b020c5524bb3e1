"""`.ci/site` says nothing of a good site and fails at a bad one; README's links lead somewhere."""

import re
import shutil
import subprocess

import code_blocks
import pytest

ROOT = code_blocks.ROOT
DEAD = {
    "no_such_page.md": "[page](no_such_page.md)",
    "#no-such-anchor": "[anchor of a page](limits.md#no-such-anchor)",
    "#no-such-heading": "[anchor of this page](#no-such-heading)",
    "no_such_picture.png": "![picture](no_such_picture.png)",
    "keras_noisylb.no_such_symbol": "[symbol][keras_noisylb.no_such_symbol]",
}
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def build(folder):
    return subprocess.run(
        [folder / ".ci" / "site"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_a_dead_link_ends_the_build(tmp_path):
    pytest.importorskip("material", reason="needs the extra `docs`")
    for name in (".ci", "docs", "keras_noisylb", "models"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    good = build(tmp_path)
    assert (good.returncode, good.stdout) == (0, "")
    with (tmp_path / "docs" / "choosing.md").open("a", encoding="utf-8") as page:
        page.write("\n" + "\n\n".join(DEAD.values()) + "\n")
    bad = build(tmp_path)
    assert bad.returncode != 0
    for target in DEAD:
        assert re.search(f"WARNING.*{re.escape(target)}", bad.stdout), target


def test_links_of_the_readme():
    links = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
