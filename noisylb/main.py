"""The `noisylb` command with all its commands."""

import importlib

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
