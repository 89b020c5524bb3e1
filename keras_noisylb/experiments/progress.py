"""What a training shows of its epochs: bars in a terminal, lines elsewhere."""

import os
import sys

import keras


def has_bars():
    """Whether Keras' bars, which redraw their line by escape codes, suit the output."""
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


class EpochLines(keras.callbacks.Callback):
    """Prints one line an epoch.

    Args:
        epochs: number of epochs of the whole training.
        say: function that prints a line.
    """

    def __init__(self, epochs, say):
        super().__init__()
        self.epochs, self.say = epochs, say

    def on_epoch_end(self, epoch, logs=None):
        found = ", ".join(f"{name} {float(value):.4g}" for name, value in logs.items())
        # Keras calls whatever is evaluated during training "val".
        self.say(f"Epoch {epoch + 1}/{self.epochs}: {found.replace('val_', 'test_')}")
