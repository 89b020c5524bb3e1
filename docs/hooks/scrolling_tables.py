"""Puts every table of a page into a frame that scrolls, which `assets/site.css` lays out."""

import re

TABLE = re.compile(r"<table>.*?</table>", re.DOTALL)


def on_page_content(html, **_):
    """MkDocs calls it for every page.

    Args:
        html: of the page's content.

    Returns:
        The content with framed tables.
    """
    frame = '<div class="scroll" role="region" aria-label="Table" tabindex="0">{}</div>'
    return TABLE.sub(lambda table: frame.format(table[0]), html)
