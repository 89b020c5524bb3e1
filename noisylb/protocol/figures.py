"""The sizes at which `noisylb figure` repeats the paper's figures."""

import dataclasses
from dataclasses import dataclass

from noisylb.protocol.options import Options

FIGURES = {
    "1": "noise of one step in a regression of two parameters",
    "2": "variance of the gradient, layer by layer",
    "3": "training error per update",
    "4": "full against diagonal noise on a quadratic",
    "5a": "Frobenius norms of the Fisher along training",
    "5b": "largest eigenvalue of the Hessian after training",
}


@dataclass(frozen=True)
class Preset:
    """How large the experiments behind the figures are.

    Args:
        options: model, data and training; the learning rates are those of Figure 5b.
        pool: images are reduced to the means of `pool` x `pool` pixels.
        runs: runs of each seed in Figure 4.
        partly: epochs of SB after which Figure 2 freezes the network.
        draws: gradients of each regime in Figure 2.
        updates: updates of each regime in Figure 3.
        every: updates between two points of Figure 3, and between two checkpoints.
        rate: learning rate of all regimes in Figure 3.
        measured_epochs: epochs of LB after which Figure 5a takes the norms.
        fisher_examples: examples that its Fisher is the mean of.
        hessian_examples: examples that the Hessian of Figure 5b is of.

    Example:
    ```python
    small = dataclasses.replace(PRESETS["quick"], updates=64)
    ```
    """

    options: Options
    pool: int
    runs: int
    partly: int
    draws: int
    updates: int
    every: int
    rate: float
    measured_epochs: tuple
    fisher_examples: int
    hessian_examples: int

    def resolved(self):
        """All of it as plain data in one spelling, for the record of a run."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**own.pop("options").resolved(), **own}


PRESETS = {
    # A ResNet8 on images of 14 x 14 pixels: each figure takes minutes on two cores.
    "quick": Preset(
        Options(
            model="resnet8",
            large_batch_size=512,
            small_batch_size=32,
            epochs=20,
            learning_rate="sb=0.05,lb=0.2",
            multiplier=1.0,
            train_size=4096,
            seeds="3",
        ),
        pool=2,
        runs=1000,
        partly=3,
        draws=24,
        updates=240,
        every=8,
        rate=0.1,
        measured_epochs=(0, 1, 2, 5, 10, 15, 20),
        fisher_examples=512,
        hessian_examples=1024,
    ),
    # As published; what the paper does not state is Hoffer et al.'s. In 16 microbatches a step of
    # exact per-example squares takes 5 GiB.
    "paper": Preset(
        Options(
            model="resnet44",
            dataset="cifar10",
            large_batch_size=4096,
            small_batch_size=128,
            epochs=200,
            learning_rate="sb=0.1,lb=3.2,lb-diagonal=1.6,lb-diagonal-a5=1.6,lb-diagonal-split=1.6",
            multiplier=1.0,
            num_microbatches=16,
            l2=5e-5,  # a weight decay of 1e-4: the gradient of l2 w² is 2 l2 w
            augment=True,
            seeds="3",
        ),
        pool=1,
        runs=1000,
        partly=20,
        draws=100,
        updates=6000,
        every=12,
        rate=1.6,
        measured_epochs=(0, 1, 2, 5, 10, 20, 40, 60, 80, 100, 120, 140, 160, 180, 200),
        fisher_examples=1024,
        hessian_examples=4096,
    ),
}
