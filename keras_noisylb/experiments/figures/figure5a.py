"""Figure 5a: Frobenius norms of the full and of the diagonal Fisher along the training of LB."""

import dataclasses

import keras
import numpy as np

from keras_noisylb.diagnostics import fisher_norms
from keras_noisylb.experiments import records, runs
from keras_noisylb.experiments.figures import training
from keras_noisylb.experiments.figures.style import claim, grid_of_axes
from keras_noisylb.experiments.problem import builder
from keras_noisylb.experiments.regimes import choose

NORMS = ("full", "diagonal", "trace")
LOOKS = {"full": ("#D55E00", "--", "s"), "diagonal": ("#0072B2", "-", "o")}


def compute(preset, folder, say):
    """The numbers of the figure.

    Args:
        preset: `noisylb.protocol.figures.Preset`.
        folder: `pathlib.Path` of what is finished.
        say: function that prints a line.

    Returns:
        Dictionary of plain data.
    """
    split = training.load(preset)
    seeds = {
        str(seed): along(preset, folder / f"lb-seed{seed}", split, seed, say)
        for seed in preset.options.seed_list
    }
    return {
        "seeds": seeds, "epochs": list(preset.measured_epochs),
        "examples": preset.fisher_examples, "all_epochs": preset.options.epochs,
    }  # fmt: skip


def along(preset, folder, split, seed, say):
    """The norms of one training.

    Args:
        preset: `noisylb.protocol.figures.Preset`.
        folder: `pathlib.Path` of the run.
        split: the data.
        seed: of weights and data.
        say: function that prints a line.

    Returns:
        Dictionary of the name of a norm to a list of its values, one for each measured epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "norms.json"
    found = records.read_json(path, NORMS, say) or {name: [] for name in NORMS}
    if len(found["full"]) == len(preset.measured_epochs):
        say(f"seed {seed}: finished before")
        return found
    options = dataclasses.replace(preset.options, quiet=True)
    regime, rate = choose(dataclasses.replace(options, regimes="lb"))["lb"]
    history = None
    while history is None:
        keras.backend.clear_session()
        keras.utils.set_random_seed(seed)
        network = builder(options, split.num_classes, split.x_train.shape[1:])()
        number = len(split.x_train)
        model, _ = runs.compiled(network, regime, rate, options, number, seed)
        history = runs.resume(model, folder, say)
    if not history["epochs"]:
        found = {name: [] for name in NORMS}  # the training begins anew
    journal = runs.Journal(folder, history, lambda size: split.batches(size, seed, options.augment))
    data = journal.data(options.large_batch_size)
    for epoch in preset.measured_epochs[len(found["full"]) :]:
        done = len(history["epochs"])
        if done < epoch:
            model.fit(
                data,
                shuffle=False,
                initial_epoch=done,
                epochs=epoch,
                callbacks=[journal],
                verbose=0,
            )
        if journal.diverged_epoch is not None:
            raise records.CompareError(
                f"LB diverged at epoch {journal.diverged_epoch} with the learning rate {rate:g}. "
                "Choose another --preset or other --seeds."
            )
        size = min(preset.fisher_examples, number)
        norms = fisher_norms(
            network, training.LOSS, split.x_train[:size], split.y_train[:size], verbose=0
        )
        for name in NORMS:
            found[name].append(float(getattr(norms, name)))
        records.write_json(path, found)
        say(f"seed {seed}, epoch {epoch}: {norms.full:.3g} full, {norms.diagonal:.3g} diagonal")
    return found


def verdict(numbers):
    """What the paper claims, beside the numbers.

    Args:
        numbers: from `compute`.

    Returns:
        List of dictionaries.
    """
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
    """Both norms along the training.

    Args:
        numbers: from `compute`.

    Returns:
        A matplotlib figure.
    """
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
