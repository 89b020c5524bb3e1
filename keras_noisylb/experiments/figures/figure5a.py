"""Figure 5a: Frobenius norms of the full and the diagonal Fisher along the training of LB."""

import dataclasses
import math

import keras
import numpy as np

from keras_noisylb.diagnostics import fisher_norms
from keras_noisylb.experiments import records
from keras_noisylb.experiments.figures import training
from keras_noisylb.experiments.figures.style import claim, grid_of_axes
from keras_noisylb.training.model import NoisyModel

# Epochs after which the norms are measured, and the number of examples of the Fisher.
SIZES = {
    "quick": {"measured_epochs": (0, 1, 2, 5, 10, 15, 20), "fisher_examples": 512},
    "paper": {
        "measured_epochs": (0, 1, 2, 5, 10, *range(20, 201, 20)),
        "fisher_examples": 1024,
    },
}
MINUTES = {"quick": 0.5, "paper": 850}  # a seed on two CPU cores; paper: estimated
NORMS = ("full", "diagonal", "trace")
LOOKS = {"full": ("#D55E00", "--", "s"), "diagonal": ("#0072B2", "-", "o")}


def compute(setup, folder, say):
    """The numbers of the figure."""
    split = training.load(setup.options)
    seeds = {str(seed): along(setup, folder, split, seed, say) for seed in setup.options.seed_list}
    return {
        "seeds": seeds, "epochs": list(setup.size["measured_epochs"]),
        "examples": setup.size["fisher_examples"], "all_epochs": setup.options.epochs,
    }  # fmt: skip


def along(setup, folder, split, seed, say):
    """The norms of one training.

    Args:
        setup: a `noisylb.protocol.figures.FigureSetup`.
        folder: `pathlib.Path` of the figure.
        split: the data.
        seed: of weights and data.
        say: function that prints a line.

    Returns:
        Dictionary of the name of a norm to a list of its values, one for each measured epoch.

    Raises:
        CompareError: if LB diverges, or was trained without being measured.
    """
    # The accuracy is not needed, so it is evaluated only once.
    options = dataclasses.replace(setup.options, validation_freq=setup.options.epochs, quiet=True)
    measure = MeasureNorms(folder / f"norms-seed{seed}.json", setup, split, say)
    run, record, _ = training.trained(folder, "lb", options, seed, split, say, [measure])
    if record["diverged_epoch"] is not None:
        raise records.CompareError(
            f"LB diverged at epoch {record['diverged_epoch']} with the learning rate "
            f"{record['learning_rate']:g}. Choose another --preset or other --seeds."
        )
    missing = [epoch for epoch in setup.size["measured_epochs"] if str(epoch) not in measure.found]
    if missing:
        raise records.CompareError(
            f"{measure.path} lacks the norms of the epochs {missing}, but the training in {run} is "
            "finished. Remove that folder to train and measure again, or choose another --output."
        )
    found = [measure.found[str(epoch)] for epoch in setup.size["measured_epochs"]]
    return {name: [norms[name] for norms in found] for name in NORMS}


class MeasureNorms(keras.callbacks.Callback):
    """Measures the norms of the Fisher at some epochs of a training, and keeps them in a file.

    Args:
        path: `pathlib.Path` of the file: by epoch, the norms by name.
        setup: a `noisylb.protocol.figures.FigureSetup`.
        split: the data.
        say: function that prints a line.
    """

    def __init__(self, path, setup, split, say):
        super().__init__()
        self.path, self.setup, self.say = path, setup, say
        size = min(setup.size["fisher_examples"], len(split.x_train))
        self.x, self.y = split.x_train[:size], split.y_train[:size]
        self.found = records.read_json(path, (), say) or {}

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 0:
            self.measure(0)

    def on_epoch_end(self, epoch, logs=None):
        if math.isfinite(logs["loss"]):
            self.measure(epoch + 1)

    def measure(self, epoch):
        """Measure the network as it is now, if this is an epoch to measure.

        Args:
            epoch: number of finished epochs.
        """
        if epoch not in self.setup.size["measured_epochs"]:
            return
        network = self.model.model if isinstance(self.model, NoisyModel) else self.model
        norms = fisher_norms(network, training.LOSS, self.x, self.y, verbose=0)
        self.found[str(epoch)] = {name: float(getattr(norms, name)) for name in NORMS}
        records.write_json(self.path, self.found)
        self.say(f"  epoch {epoch}: {norms.full:.3g} full, {norms.diagonal:.3g} diagonal")


def verdict(numbers):
    """The claims of the paper, and whether the numbers show them."""
    ratios = np.array([
        np.divide(found["full"], found["diagonal"]) for found in numbers["seeds"].values()
    ])
    return [
        claim(
            "The Frobenius norm of the full Fisher is far larger than that of the diagonal one.",
            ratios.min() > 5,
            f"‖F‖ / ‖diag F‖ from {ratios.min():.1f} to {ratios.max():.1f} over all seeds and "
            f"epochs; mean {ratios[:, 0].mean():.1f} before training and "
            f"{ratios[:, -1].mean():.1f} after {numbers['epochs'][-1]} epochs.",
        )
    ]


def draw(numbers):
    """Both norms along the training."""
    figure, axes = grid_of_axes(1, 1, 7, 4.6)
    panel = axes[0, 0]
    for name, (colour, line, marker) in LOOKS.items():
        values = np.array([found[name] for found in numbers["seeds"].values()])
        panel.fill_between(numbers["epochs"], values.min(0), values.max(0), color=colour, alpha=0.2)
        panel.plot(
            numbers["epochs"], np.exp(np.log(values).mean(0)), color=colour, linestyle=line,
            marker=marker, label=f"{name} Fisher",
        )  # fmt: skip
    panel.set(
        xlabel="epoch",
        ylabel="Frobenius norm (squared gradient)",
        yscale="log",
        title=f"Fisher of {numbers['examples']} training examples along LB\n"
        f"(geometric mean and range of {len(numbers['seeds'])} seeds)",
    )
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.legend(frameon=False)
    return figure
