"""The Python of Markdown pages, run as printed."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent


def python_blocks(page):
    """The code of a page's blocks that begin with ```python and nothing behind it."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def run(page, replace=()):
    """Run the blocks of a page one after the other, and return the names that they define.

    Every pair `(printed, run)` of `replace` must occur.
    """
    code = "\n".join(python_blocks(page))
    assert code, f"{page} has no Python"
    for printed, instead in replace:
        assert printed in code, f"{page} does not have {printed}"
        code = code.replace(printed, instead)
    names = {"__name__": page.name}
    exec(compile(code, page.name, "exec"), names)
    return names
