"""What can be wrong with the HTML of a built site."""

import html.parser
import pathlib
import re
import urllib.parse

# TeX that no extension has seen: formulas in dollars, commands such as \frac, \( and \[.
RAW_TEX = re.compile(r"\$\$|\$\\|\$[A-Za-z]\w*\$|\\[A-Za-z]{2,}|\\[\[\]()]")
FENCED = re.compile(r"^( *)(```+|~~~+).*?^\1\2 *$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
# What the site's extension Arithmatex takes as formulas.
FORMULA = re.compile(r"\$\$.+?\$\$|(?<!\\)\$(?!\s)(?:\\.|[^\\$])+?(?<!\s)\$", re.DOTALL)

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source"}


class Page(html.parser.HTMLParser):
    """A page: its anchors and links, what it loads, and its tables and formulas."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []
        self.tables, self.bare_tables = 0, 0
        self.formulas, self.raw_formulas = 0, 0
        self._open = []  # (tag, whether it is in a frame that scrolls, whether in a formula)
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        loads = {"script": "src", "img": "src", "link": "href"}.get(tag)
        if loads in given and given.get("rel") not in {"prev", "next", "canonical"}:
            self.loaded.append(given[loads])
        framed = bool(self._open) and self._open[-1][1]
        framed = framed or "scroll" in (given.get("class") or "").split()
        formula = "arithmatex" in (given.get("class") or "").split()
        self.formulas += formula
        if tag == "table":
            self.tables += 1
            self.bare_tables += not framed
        if tag not in VOID:
            self._open.append((tag, framed, formula))

    def handle_data(self, data):
        if not {"code", "script", "style"} & {tag for tag, *_ in self._open}:
            typeset = any(formula for _, _, formula in self._open)
            self.raw_formulas += 0 if typeset else len(RAW_TEX.findall(data))

    def handle_endtag(self, tag):
        if tag in {name for name, *_ in self._open}:
            while self._open.pop()[0] != tag:
                pass


def raw_tex(markdown: str) -> list[str]:
    """TeX in the source of a page that is neither code nor a whole formula."""
    for known in (FENCED, CODE, FORMULA):
        markdown = known.sub("", markdown)
    return RAW_TEX.findall(markdown) + re.findall(r"(?<!\\)\$", markdown)


def read(folder: pathlib.Path) -> dict[pathlib.Path, Page]:
    """All pages of a site."""
    return {path: Page(path) for path in sorted(folder.rglob("*.html"))}


def broken_links(folder: pathlib.Path, pages: dict[pathlib.Path, Page]) -> list[str]:
    """Links and files to load that lead nowhere inside the site, as `page: target`."""
    broken = []
    for path, page in pages.items():
        for target in page.links + page.loaded:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = path
            if parts.path:
                way = urllib.parse.unquote(parts.path)
                file = folder / way[1:] if way.startswith("/") else path.parent / way
                file = file.resolve()
            if file.is_dir():
                file /= "index.html"
            anchor = urllib.parse.unquote(parts.fragment)
            known = pages[file].anchors if file in pages else set()
            if not file.exists() or (anchor and file in pages and anchor not in known):
                broken.append(f"{path.relative_to(folder)}: {target}")
    return broken


def loaded_from_elsewhere(pages: dict[pathlib.Path, Page]) -> list[str]:
    """What a reader's browser would fetch from another host."""
    return [
        url for page in pages.values() for url in page.loaded if urllib.parse.urlsplit(url).netloc
    ]
