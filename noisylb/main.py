"""The `noisylb` command with all its commands."""

import importlib
import sys

from noisylb.protocol.extra import check_cli

try:
    check_cli()
except ImportError as error:
    sys.exit(f"noisylb: error: {error}")

from noisylb.app import app

for name in (
    "train",
    "regimes",
    "batch_size",
    "table",
    "tune",
    "figure",
):  # in the order of the help
    importlib.import_module(f"noisylb.{name}_command")


def main():
    """Run the command line."""
    app()
