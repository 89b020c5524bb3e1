"""The command `regimes`."""

import typer
from rich.console import Console

from noisylb.app import app, work
from noisylb.protocol.options import Options
from noisylb.protocol.terminal import grid, print_table


@app.command(help="List the regimes that `compare` and `train` know.")
def regimes():
    """List the regimes, with the noise and the cost that they have by default."""

    def show(module):
        rows, options = [], Options()
        for name, regime in module.REGIMES.items():
            noise = regime.noise(options, options.learning_rates["lb"])
            kind = "–" if noise is None else type(noise).__name__
            rows.append((name, regime.title(), regime.batch, kind, f"{regime.cost:g}"))
        caption = (
            "batch: large, small, or change: first small, then large. cost: time that the noise "
            "adds to an update, in updates without noise."
        )
        header = ("name", "title", "batch", "noise", "cost")
        print_table(Console(), grid(header, rows, right=(4,), caption=caption))

    work("regimes", show, "the list")
    typer.echo("Next: noisylb report --regime NAME, or noisylb compare --regimes sb,lb,NAME")
