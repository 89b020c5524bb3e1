"""The table that `report` returns."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """What happens at one layer.

    Args:
        layer: its name and class.
        shapes: shapes of its trainable variables.
        method: how its part of the statistic is obtained.
        exact: whether it is what the noise's definition asks for.
        megabytes: size of its statistic.
        work: multiplications of a step with noise over those of the plain step.
    """

    layer: str
    shapes: str
    method: str
    exact: bool
    megabytes: float
    work: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What `report` found; its `str` is a table.

    Args:
        rows: list of `Row`, one for each layer with trainable variables of its own.
        work: multiplications of a whole step with noise over those of the plain step. Time also
            depends on memory and hardware: see the measured ratios in the documentation.
        megabytes: size of the statistic, beside one gradient.
        notes: sentences that hold for the whole model.
        num_microbatches: the fewest, a power of two, that keep a step within the memory that was
            asked for; `None` if none was, or no number does.
        gibibytes: what a step then takes for activations, gradients and statistics, an estimate
            from its graph; `None` if no memory was asked for.
    """

    rows: list[Row]
    work: float
    megabytes: float
    notes: list[str]
    num_microbatches: int | None = None
    gibibytes: float | None = None

    def __str__(self) -> str:
        header = ("layer", "variables", "statistic", "exact", "MB", "work")
        cells = [header] + [
            (
                row.layer,
                row.shapes,
                row.method,
                "yes" if row.exact else "no",
                f"{row.megabytes:.2f}",
                f"{row.work:.2f}",
            )
            for row in self.rows
        ]
        widths = [max(len(line[k]) for line in cells) for k in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        total = f"whole step: work {self.work:.2f}, statistic {self.megabytes:.2f} MB"
        return "\n".join([*lines, total, *self.notes])
