"""Figure 4: full against diagonal noise on a quadratic of two parameters."""

import numpy as np

from keras_noisylb.experiments.figures.style import claim, grid_of_axes
from keras_noisylb.quadratic import Quadratic, noise_factor

SIZES = {"quick": {"runs": 1000}, "paper": {"runs": 1000}}  # of each seed
MINUTES = {"quick": 0.1, "paper": 0.1}  # a seed on two CPU cores; paper: estimated
HESSIAN = ((2.0, 1.5), (1.5, 2.0))
STEP_SIZE, STEPS, EVERY = 0.1, 500, 10
SHOWN = 81  # points of the mean loss, which hardly changes afterwards
# The paper's start is not stated; the last two lie along the steepest and the flattest direction.
STARTS = {"(4, 3)": (4.0, 3.0), "(3, 3)": (3.0, 3.0), "(3, -3)": (3.0, -3.0)}
LEVELS = (1.0, 0.3, 0.1, 0.03, 0.01)
LOOKS = {"full": ("#D55E00", "--"), "diagonal": ("#0072B2", "-")}


def first_below(losses, level):
    """The update after which each run's loss is first at most `level`.

    Args:
        losses: array (1 + updates, runs).
        level: ε.

    Returns:
        Array of integers; one more than the number of updates where that never happened.
    """
    below = losses <= level
    return np.where(below.any(axis=0), below.argmax(axis=0), len(losses))


def measure(structure, start, runs, seed, steps=STEPS):
    """Simulate one noise, and compare it with the exact moments.

    Args:
        structure: "full" or "diagonal".
        start: θ_0.
        runs: number of runs.
        seed: of the noise.
        steps: number of updates.

    Returns:
        Dictionary of plain data.
    """
    problem = Quadratic(HESSIAN, noise_factor(HESSIAN, structure))
    paths = problem.simulate(start, steps, STEP_SIZE, runs=runs, seed=seed)
    losses, distances = problem.loss(paths), np.linalg.norm(paths, axis=-1)
    expected = problem.expected_losses(start, steps, STEP_SIZE)
    hits = {str(level): first_below(losses, level) for level in LEVELS}
    return {
        "hits": {
            level: {
                "mean": float(found.mean()),
                "standard_error": float(found.std(ddof=1) / np.sqrt(runs)),
                "median": float(np.median(found)),
                "never": int(np.sum(found > steps)),
            }
            for level, found in hits.items()
        },
        "mean_loss": losses[:SHOWN].mean(axis=1).tolist(),
        "mean_loss_standard_error": (losses.std(axis=1, ddof=1) / np.sqrt(runs))[:SHOWN].tolist(),
        "expected_loss": expected[:SHOWN].tolist(),
        "final_expected_loss": float(expected[-1]),
        "final_distance": float(distances[-1].mean()),
        "path": paths[::EVERY, 0].tolist(),
    }


def compute(setup, folder, say):
    """The numbers of the figure."""
    seeds = {
        str(seed): {
            place: {
                structure: measure(structure, start, setup.size["runs"], (seed, number))
                for number, structure in enumerate(LOOKS)
            }
            for place, start in STARTS.items()
        }
        for seed in setup.options.seed_list
    }
    say(f"{setup.size['runs']} runs of {STEPS} updates for each of {len(seeds)} seeds")
    return {"seeds": seeds, "runs": setup.size["runs"], "step_size": STEP_SIZE, "hessian": HESSIAN}


def lead(numbers, place, level):
    """How many updates sooner diagonal noise reaches a loss, over all seeds.

    Args:
        numbers: from `compute`.
        place: key of `STARTS`.
        level: ε.

    Returns:
        Tuple of the means of full and diagonal, and the standard error of their difference.
    """
    rows = [
        [found[place][structure]["hits"][str(level)] for structure in LOOKS]
        for found in numbers["seeds"].values()
    ]
    means = np.mean([[hit["mean"] for hit in row] for row in rows], axis=0)
    errors = np.array([[hit["standard_error"] for hit in row] for row in rows])
    return (*means, np.sqrt(np.sum(errors**2)) / len(rows))


def verdict(numbers):
    """The claims of the paper, and whether the numbers show them."""
    runs = numbers["runs"] * len(numbers["seeds"])
    sooner, later, words = [], [], []
    for place in STARTS:
        cells = []
        for level in LEVELS:
            full, diagonal, error = lead(numbers, place, level)
            sooner.append(full - diagonal > 3 * error)
            later.append(diagonal - full > 3 * error)
            cells.append(f"{level:g}: {full:.1f} / {diagonal:.1f} (± {error:.2f})")
        words.append(f"from {place}: {', '.join(cells)}")
    names = [(seed, place) for seed in numbers["seeds"].values() for place in STARTS]
    ends = {n: np.mean([seed[place][n]["final_distance"] for seed, place in names]) for n in LOOKS}
    last = {n: names[0][0]["(4, 3)"][n]["final_expected_loss"] for n in LOOKS}
    return [
        claim(
            "Diagonal noise reaches the minimum sooner than full noise.",
            sooner,
            f"Sooner by more than 3 standard errors in {sum(sooner)} of {len(sooner)} cases, later "
            f"in {sum(later)}. Mean number of updates until L ≤ ε, full / diagonal (± standard "
            f"error of the difference), {runs} runs each; {'; '.join(words)}.",
        ),
        claim(
            "In the end diagonal noise has the lower loss.",
            last["diagonal"] < last["full"],
            f"Exact E[L] after {STEPS} updates: full {last['full']:.4f}, diagonal "
            f"{last['diagonal']:.4f}.",
        ),
        claim(
            "In the end diagonal noise is nearer to the minimum.",
            ends["diagonal"] < ends["full"],
            f"Mean ‖θ‖ after {STEPS} updates: full {ends['full']:.3f}, diagonal "
            f"{ends['diagonal']:.3f}.",
        ),
    ]


def draw(numbers):
    """One run of each noise, the mean loss, and the updates that reaching a loss takes."""
    first = next(iter(numbers["seeds"].values()))["(4, 3)"]
    figure, axes = grid_of_axes(2, 2, 10, 8)
    grid = np.stack(np.meshgrid(np.linspace(-3, 5, 161), np.linspace(-3.5, 4.5, 161)), axis=-1)
    losses = Quadratic(HESSIAN, np.eye(2)).loss(grid)
    for panel, (structure, (colour, _)) in zip(axes[0], LOOKS.items(), strict=True):
        levels = [0.1, 0.5, 1.5, 4, 8, 16, 32]
        panel.contour(grid[..., 0], grid[..., 1], losses, levels, colors="0.75", linewidths=0.8)
        path = np.array(first[structure]["path"])
        panel.plot(*path.T, "o-", color=colour, markersize=3, linewidth=0.8, alpha=0.8)
        panel.plot(*path[0], "s", color="black", markersize=8, label="start")
        panel.plot(*path[-1], "*", color="black", markersize=13, label=f"after {STEPS} updates")
        panel.set(title=f"{structure} Fisher, one run", xlabel="θ₁", ylabel="θ₂", aspect="equal")
        panel.legend(frameon=False, loc="lower right")
        panel.grid(False)
    losses, hits = axes[1]
    for number, (structure, (colour, line)) in enumerate(LOOKS.items()):
        mean = np.array(first[structure]["mean_loss"])
        updates = np.arange(len(mean))
        error = 2 * np.array(first[structure]["mean_loss_standard_error"])
        losses.fill_between(updates, mean - error, mean + error, color=colour, alpha=0.25)
        losses.plot(
            first[structure]["expected_loss"], line, color=colour, label=f"{structure} Fisher"
        )
        means = [lead(numbers, "(4, 3)", level)[number] for level in LEVELS]
        hits.plot(LEVELS, means, line, marker="o", color=colour, label=f"{structure} Fisher")
    losses.set(
        xlabel="update",
        ylabel="E[L]",
        yscale="log",
        xlim=(0, SHOWN - 1),
        title=f"Exact mean loss; band: {numbers['runs']} runs, ± 2 standard errors",
    )
    hits.set(
        xlabel="loss ε to reach",
        ylabel="updates until L ≤ ε, mean",
        xscale="log",
        title=f"Updates from (4, 3) to a loss, {numbers['runs'] * len(numbers['seeds'])} runs",
    )
    hits.invert_xaxis()
    for panel in axes[1]:
        panel.legend(frameon=False)
    return figure
