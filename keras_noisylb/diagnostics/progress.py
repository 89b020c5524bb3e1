"""The progress bar of long computations."""

import contextlib

import keras


@contextlib.contextmanager
def progress_bar(title, total, verbose):
    """Show a progress bar.

    Args:
        title: text above the bar.
        total: number of steps, or `None` if it is unknown.
        verbose: 0 to show nothing.

    Yields:
        A function without arguments; call it after each step.
    """
    if not verbose:
        yield lambda: None
        return
    print(title)
    bar, steps = keras.utils.Progbar(total), 0

    def advance():
        nonlocal steps
        steps += 1
        bar.update(steps)

    yield advance
    if steps != total:
        bar.update(steps, finalize=True)
