"""The progress bar of everything that takes long."""


def progress_bar(verbose):
    """A progress bar on the terminal.

    Args:
        verbose: 0 to show nothing.

    Returns:
        A `rich.progress.Progress`, to be used as a context manager.
    """
    from rich import progress  # here, because it takes long to import

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        disable=not verbose,
    )
