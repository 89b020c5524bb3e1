"""What the command line and the comparisons need beyond the package: the extra `cli`."""

import importlib.util

MODULES = ("typer", "rich", "matplotlib", "filelock")


def check_cli():
    """Check that the extra `cli` is installed.

    Raises:
        ImportError: if a part of it is not.
    """
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{', '.join(missing)} cannot be imported. The command line and keras_noisylb.compare "
            "need the extra `cli`. In the clone run: pip install -e '.[cli]'"
        )
