"""The progress bar of everything that takes long."""

from rich import progress


def progress_bar(verbose):
    """A progress bar on the terminal.

    Args:
        verbose: 0 to show nothing.

    Returns:
        A `rich.progress.Progress`, to be used as a context manager.
    """
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        disable=not verbose,
    )
