"""Figure 5b: largest eigenvalue of the Hessian after training."""

import dataclasses

import keras
import numpy as np

from keras_noisylb.diagnostics import sharpness
from keras_noisylb.experiments import records
from keras_noisylb.experiments.figures import training
from keras_noisylb.experiments.figures.style import claim, grid_of_axes
from keras_noisylb.experiments.regimes import REGIMES

# Examples that the Hessian is of.
SIZES = {"quick": {"hessian_examples": 1024}, "paper": {"hessian_examples": 4096}}
MINUTES = {"quick": 3, "paper": 5400}  # a seed on two CPU cores; paper: estimated
NAMES = ("lb", "lb-diagonal", "lb-diagonal-split", "lb-diagonal-a5", "sb")
TOLERANCE = 1e-2  # of an eigenvalue; seeds differ by more


def compute(setup, folder, say):
    """The numbers of the figure."""
    split, regimes = training.load(setup.options), {name: [] for name in NAMES}
    options = dataclasses.replace(setup.options, quiet=True)
    for seed in options.seed_list:
        for name in NAMES:
            run, record, _ = training.trained(folder, name, options, seed, split, say)
            path = run / "sharpness.json"
            found = records.read_json(path, ("eigenvalue",), say)
            if found is None:
                found = measure(run, setup, split)
                records.write_json(path, found)
            accuracies = {key: record[key] for key in ("train_accuracy", "test_accuracy")}
            regimes[name].append({"seed": seed, **found, **accuracies})
            say(f"  largest eigenvalue {found['eigenvalue']:.3g}, T = {found['temperature']:.2f}")
    return {
        "regimes": regimes,
        "examples": setup.size["hessian_examples"],
        "epochs": options.epochs,
    }


def measure(run, setup, split):
    """The sharpness of a trained network.

    Args:
        run: `pathlib.Path` of its run.
        setup: a `noisylb.protocol.figures.FigureSetup`.
        split: the data.

    Returns:
        Dictionary of plain data.
    """
    model = keras.saving.load_model(run / "model.keras")
    size = min(setup.size["hessian_examples"], len(split.x_train))
    result = sharpness(
        model,
        training.LOSS,
        split.x_train[:size],
        split.y_train[:size],
        temperature_data=(split.x_test, split.y_test),
        tolerance=TOLERANCE,
        verbose=0,
    )
    return {
        "eigenvalue": float(result.largest_eigenvalue),
        "temperature": float(result.temperature),
        "products": int(result.eigenpairs.num_products),
    }


def verdict(numbers):
    """The claims of the paper, and whether the numbers show them."""
    found = {
        name: np.array([run["eigenvalue"] for run in runs])
        for name, runs in numbers["regimes"].items()
    }
    words = {}
    for name, values in found.items():
        each = ", ".join(f"{value:.3g}" for value in values)
        words[name] = f"{training.title(name)} {values.mean():.3g} ({each})"
    return [
        claim(
            "The largest eigenvalue of LB is above that of LB + diagonal Fisher.",
            np.all(found["lb"] > found["lb-diagonal"]),
            f"Mean (each seed): {'; '.join(words[n] for n in NAMES if n != 'sb')}.",
        ),
        claim(
            "That of SB is the lowest, or comparable to LB + diagonal Fisher.",
            found["sb"].mean() < 1.2 * found["lb-diagonal"].mean(),
            f"{words['sb']}.",
        ),
    ]


def draw(numbers):
    """One column for each regime, one point for each seed."""
    figure, axes = grid_of_axes(1, 1, 8, 4.6)
    panel = axes[0, 0]
    for place, (name, runs) in enumerate(numbers["regimes"].items()):
        values = np.array([run["eigenvalue"] for run in runs])
        colour, _, marker = REGIMES[name].look
        spread = values.std(ddof=1) if len(values) > 1 else 0.0
        panel.bar(place, values.mean(), 0.6, color=colour, alpha=0.35)
        panel.errorbar(place, values.mean(), spread, color=colour, capsize=6, linewidth=2)
        shifts = 0.12 * (np.arange(len(values)) - (len(values) - 1) / 2)
        panel.plot(place + shifts, values, marker, color=colour, markersize=6)
    names = [training.title(name).replace(" + ", "\n+ ") for name in numbers["regimes"]]
    panel.set_xticks(np.arange(len(names)), names)
    panel.set(
        ylabel="largest eigenvalue of the Hessian",
        ylim=(0, None),
        title=f"After {numbers['epochs']} epochs: batch norm folded, temperature fitted\n"
        "(points: seeds; bar: mean ± standard deviation)",
    )
    panel.grid(axis="x", alpha=0)
    return figure
