"""Tables as text."""

import csv
import io


def shown(value, form):
    """A number as it is shown: formatted, or a dash where there is none.

    Args:
        value: a number, or `None`.
        form: its format, such as ".2f".
    """
    return "–" if value is None else format(value, form)


def markdown(header, rows, caption):
    """A table as Markdown, with its caption below.

    Returns:
        A string.
    """
    table = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in table) + f"\n\n{caption}\n"


def to_csv(fields, lines):
    """Numbers as CSV, with all their digits.

    Returns:
        A string.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
