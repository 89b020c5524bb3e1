"""Tables in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.measure import Measurement
from rich.table import Table

WIDEST = 10_000
LONGEST = 40  # letters of a word, such as a path, that is not broken


def grid(header, rows, right=(), **options):
    """A table for the terminal, for `print_table`.

    Args:
        header: names of the columns.
        rows: of strings.
        right: numbers of the columns that are aligned at the right. What they have before a
            bracket, such as "60.7 ± 0.8", stays on one line.
        **options: of `rich.table.Table`.

    Returns:
        A `rich.table.Table`.
    """
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left", **options
    )
    for number, name in enumerate(header):
        texts = [row[number] for row in rows if len(row) > number]
        if number in right:
            texts = [text.partition(" (")[0].replace(" ", "_") for text in texts]
        words = [len(word) for text in (name, *texts) for word in text.split()]
        table.add_column(
            name,
            justify="right" if number in right else "left",
            min_width=min(max(words, default=0), LONGEST),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    return table


def print_table(console, table):
    """Print a table. A terminal that is too narrow for its words and numbers breaks the lines.

    Args:
        console: `rich.console.Console`.
        table: of `grid`.
    """
    options = console.options.update(width=WIDEST)
    least = Measurement.get(console, options, table).minimum
    console.print(table, width=max(console.width, least), crop=False)
