"""Tables in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table


def grid(header, rows, right=(), **options):
    """A table for the terminal.

    Args:
        header: names of the columns.
        rows: of strings.
        right: numbers of the columns that are aligned at the right.
        **options: of `rich.table.Table`.

    Returns:
        A `rich.table.Table`.
    """
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left", **options
    )
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number in right else "left")
    for row in rows:
        table.add_row(*row)
    return table
