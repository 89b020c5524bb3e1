"""The table that `report` returns."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """The statistic at one layer.

    Args:
        layer: its name and class.
        shapes: shapes of its trainable variables.
        method: how the statistic of this layer is computed.
        exact: whether the statistic is exactly what the noise is defined by.
        megabytes: size of the statistic of this layer.
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
    """What `report` returns; its `str` is a table.

    Args:
        rows: list of `Row`, one for each layer with trainable variables of its own.
        work: multiplications of a whole step with noise over those of the plain step. Time also
            depends on memory and hardware: see the measured ratios in the documentation.
        megabytes: size of the statistic, in addition to one gradient.
        notes: sentences on the whole model.
        num_microbatches: the smallest number of microbatches, a power of two, that keeps a step
            within `memory`; `None` without `memory`, or if no number is enough.
        gibibytes: memory of such a step for activations, gradients and statistics, estimated from
            its graph; `None` without `memory`.
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
