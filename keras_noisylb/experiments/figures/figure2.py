"""Figure 2: variance of the gradient, layer by layer, of a frozen network."""

import dataclasses

import keras
import numpy as np

from keras_noisylb.diagnostics import gradient_variance
from keras_noisylb.experiments import records
from keras_noisylb.experiments.figures import training
from keras_noisylb.experiments.figures.style import claim, grid_of_axes
from keras_noisylb.experiments.regimes import REGIMES

# Epochs of SB after which the network is frozen, and gradients of each regime.
SIZES = {"quick": {"partly": 3, "draws": 24}, "paper": {"partly": 20, "draws": 100}}
MINUTES = {"quick": 0.7, "paper": 360}  # a seed on two CPU cores; paper: estimated
NAMES = (
    "lb", "sb", "lb-full", "lb-full-split", "lb-true", "lb-diagonal", "lb-diagonal-split",
    "lb-diagonal-a5",
)  # fmt: skip
SHOWN = 4  # layers in the picture, spread over the depth as the paper's


def compute(setup, folder, say):
    """The numbers of the figure."""
    split, seeds = training.load(setup.options), {}
    options = dataclasses.replace(setup.options, epochs=setup.size["partly"], quiet=True)
    for seed in options.seed_list:
        run, record, _ = training.trained(folder, "sb", options, seed, split, say)
        model = keras.saving.load_model(run / "model.keras")
        found = {}
        for name in NAMES:
            path = run / f"variance-{name}.json"
            found[name] = records.read_json(path, ("layers",), say)
            if found[name] is None:
                found[name] = measure(model, name, setup, split, seed)
                records.write_json(path, found[name])
            say(f"{training.title(name)}, seed {seed}: {found[name]['variance']:.3g}")
        seeds[str(seed)] = {"train_accuracy": record["train_accuracy"], "regimes": found}
    return {
        "seeds": seeds, "draws": setup.size["draws"], "small_batch_size": options.small_batch_size,
        "large_batch_size": options.large_batch_size, "epochs": setup.size["partly"],
    }  # fmt: skip


def measure(model, name, setup, split, seed):
    """The variance of one regime's gradient.

    Args:
        model: the frozen network.
        name: of the regime.
        setup: a `noisylb.protocol.figures.FigureSetup`.
        split: the data.
        seed: of minibatches and noise.

    Returns:
        Dictionary of plain data, with one number for each kernel.
    """
    options = setup.options
    regime = REGIMES[name]
    small = regime.batch == "small"
    result = gradient_variance(
        model,
        training.LOSS,
        split.x_train,
        split.y_train,
        batch_size=options.small_batch_size if small else options.large_batch_size,
        noise=regime.noise(options),
        # A small batch is cheap, and its variance is what the others are divided by.
        draws=setup.size["draws"] * (4 if small else 1),
        seed=seed,
        num_microbatches=1 if small else options.num_microbatches or 1,
        verbose=0,
    )
    kernels = [k for k, path in enumerate(result.paths) if path.endswith("kernel")]
    return {
        "variance": result.variance,
        "standard_error": result.standard_error,
        "draws": result.num_draws,
        "layers": [result.paths[k].removesuffix("/kernel") for k in kernels],
        "layer_variance": result.block_variance[kernels].tolist(),
        "layer_standard_error": result.block_standard_error[kernels].tolist(),
    }


def ratios(numbers):
    """The variances in units of SB's.

    Args:
        numbers: from `compute`.

    Returns:
        Dictionary of regime to the ratios of the whole gradient, one for each seed.
    """
    return {
        name: np.array([
            found["regimes"][name]["variance"] / found["regimes"]["sb"]["variance"]
            for found in numbers["seeds"].values()
        ])
        for name in NAMES
    }


def verdict(numbers):
    """The claims of the paper, and whether the numbers show them."""
    found = ratios(numbers)
    words = {
        name: f"{training.title(name)} {r.mean():.2f} ({r.min():.2f}–{r.max():.2f})"
        for name, r in found.items()
    }

    def equal(name):
        return bool(np.all(np.abs(np.log(found[name])) < np.log(1.5)))

    noisy = [name for name in NAMES if name not in {"sb", "lb"}]
    return [
        claim(
            "The gradient's variance is about equal for SB, LB + full and LB + diagonal.",
            list(map(equal, noisy)),
            "In units of SB's, mean over seeds (range): "
            + ", ".join(words[name] for name in noisy)
            + f". Within a factor of 1.5 with every seed: "
            f"{', '.join(training.title(n) for n in noisy if equal(n)) or 'none'}.",
        ),
        claim("It is much lower for LB.", np.all(found["lb"] < 0.5), f"{words['lb']} of SB's."),
    ]


def draw(numbers):
    """Variances of some layers, and of the whole gradient."""
    seeds = [found["regimes"] for found in numbers["seeds"].values()]
    layers = seeds[0][NAMES[0]]["layers"]
    shown = np.unique(np.linspace(0, len(layers) - 1, min(SHOWN, len(layers))).round().astype(int))
    figure, axes = grid_of_axes(1, 1, 9.5, 5)
    panel = axes[0, 0]
    for number, name in enumerate(NAMES):
        values = np.array([
            [*(seed[name]["layer_variance"][k] for k in shown), seed[name]["variance"]]
            for seed in seeds
        ])
        places = np.arange(values.shape[1]) + 0.09 * (number - (len(NAMES) - 1) / 2)
        means = values.mean(axis=0)
        spread = np.stack([means - values.min(axis=0), values.max(axis=0) - means])
        colour, _, marker = REGIMES[name].look
        panel.errorbar(
            places, means, spread, fmt=marker, color=colour, capsize=2, markersize=7,
            label=training.title(name),
        )  # fmt: skip
    ticks = [*(layers[k].replace("_", "\n", 1) for k in shown), "all\nparameters"]
    panel.set_xticks(np.arange(len(ticks)), ticks)
    panel.set(
        yscale="log",
        ylabel="gradient variance, mean over parameters",
        title=f"Gradient variance after {numbers['epochs']} epochs of SB "
        f"(mean and range over {len(seeds)} seeds)",
    )
    panel.grid(axis="x", alpha=0)
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
