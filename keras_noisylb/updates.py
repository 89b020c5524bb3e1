"""Parts of a training, counted in updates."""

import math


def updates_in(fraction, updates):
    """The number of updates in a part of a training, rounded up.

    Args:
        fraction: the part, from 0 to 1.
        updates: number of updates, or epochs, of the whole training.

    Example:
    >>> updates_in(0.3, 11)
    4
    """
    # 0.07 * 100 is a little more than 7, but means 7.
    return math.ceil(round(fraction * updates, 6))
