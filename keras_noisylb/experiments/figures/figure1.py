"""Figure 1: noise of one step in a regression of two parameters.

ℓ_i(θ) = ½ (x_iᵀ θ − y_i)², so g_i = (x_iᵀ θ − y_i) x_i and everything but the dots is exact.
"""

import numpy as np

from keras_noisylb.experiments.figures.style import claim, grid_of_axes
from keras_noisylb.quadratic import noise_factor

SIZES = {"quick": {}, "paper": {}}
MINUTES = {"quick": 0.1, "paper": 0.1}  # a seed on two CPU cores; paper: estimated
EXAMPLES, SMALL, SIGMA, STEP_SIZE = 512, 8, 0.1, 0.5
CURVATURES, ANGLE, TARGET_NOISE, EXCESS_LOSS = (1.0, 0.1), np.pi / 6, 0.3, 0.5
SHOWN, MEASURED = 8, 64  # points of one contour
TITLES = {
    "sgd": f"SGD, batch {SMALL}",
    "isotropic": f"isotropic, σ = {SIGMA}",
    "full": "full Fisher",
    "diagonal": "diagonal Fisher",
}


def examples(seed, number=EXAMPLES):
    """Inputs whose covariance has the axes of a turned ellipse, and their noisy targets.

    Returns:
        Tuple of arrays (number, 2) and (number,). The best parameters are about 0.
    """
    rng = np.random.default_rng(seed)
    turn = np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
    x = rng.normal(size=(number, 2)) * np.sqrt(CURVATURES) @ turn.T
    return x, TARGET_NOISE * rng.normal(size=number)


def contour(x, y, number):
    """Points of equal loss around the minimum.

    Returns:
        Array (number, 2) of points whose loss is `EXCESS_LOSS` above the least.
    """
    values, basis = np.linalg.eigh(x.T @ x / len(x))
    phases = 2 * np.pi * np.arange(number) / number
    circle = np.stack([np.cos(phases), np.sin(phases)], axis=1)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    return best + np.sqrt(2 * EXCESS_LOSS) * circle / np.sqrt(values) @ basis.T


def covariances(x, y, theta, small=SMALL):
    """The exact covariance of each noise at a point.

    Args:
        x: inputs.
        y: targets.
        theta: the point.
        small: the small batch size; the large batch is all the examples.

    Returns:
        Tuple of the gradient of the loss and a dictionary of name to covariance (2, 2).
    """
    gradients = (x @ theta - y)[:, None] * x
    fisher = gradients.T @ gradients / len(x)
    scale = 1 / small - 1 / len(x)
    factors = {name: noise_factor(scale * fisher, name) for name in ("full", "diagonal")}
    return gradients.mean(axis=0), {
        "sgd": scale * np.cov(gradients.T),  # of a batch drawn without replacement
        "isotropic": SIGMA**2 * np.eye(2),
        **{name: factor @ factor.T for name, factor in factors.items()},
    }


def alignment(gradient, covariance):
    """How perpendicular to the contour a noise is.

    Args:
        gradient: of the loss: the normal of the contour.
        covariance: of the noise.

    Returns:
        Tuple of the angle in degrees between the covariance's longest axis and the normal, and the
        part of the total variance that lies along the normal.
    """
    normal = gradient / np.linalg.norm(gradient)
    longest = np.linalg.eigh(covariance)[1][:, -1]
    angle = np.degrees(np.arccos(min(1.0, abs(longest @ normal))))
    return angle, normal @ covariance @ normal / np.trace(covariance)


def compute(setup, folder, say):
    """The numbers of the figure."""
    seeds = {}
    for seed in setup.options.seed_list:
        x, y = examples(seed)
        found = {name: {"angle": [], "along_normal": [], "trace": []} for name in TITLES}
        for theta in contour(x, y, MEASURED):
            gradient, noises = covariances(x, y, theta)
            for name, covariance in noises.items():
                angle, part = alignment(gradient, covariance)
                found[name]["angle"].append(float(angle))
                found[name]["along_normal"].append(float(part))
                found[name]["trace"].append(float(np.trace(covariance)))
        seeds[str(seed)] = found
        say(f"seed {seed}: median angle of full Fisher {np.median(found['full']['angle']):.1f}°")
    return {
        "seeds": seeds, "examples": EXAMPLES, "small_batch_size": SMALL, "step_size": STEP_SIZE,
        "points": MEASURED, "excess_loss": EXCESS_LOSS,
    }  # fmt: skip


def pooled_over_seeds(numbers, key):
    """What was measured for each noise, at all points of all seeds.

    Args:
        numbers: of `compute`.
        key: "angle", "along_normal" or "trace".
    """
    seeds = numbers["seeds"].values()
    return {name: np.concatenate([found[name][key] for found in seeds]) for name in TITLES}


def verdict(numbers):
    """The claims of the paper, and whether the numbers show them."""
    angle, along_normal, trace = (
        pooled_over_seeds(numbers, key) for key in ("angle", "along_normal", "trace")
    )
    angles = {name: np.percentile(found, (50, 90, 100)) for name, found in angle.items()}
    parts = {name: found.mean() for name, found in along_normal.items()}
    ratio = trace["full"] / trace["sgd"]
    turned = np.abs(angle["full"] - angle["sgd"])

    def shown(name):
        return "median {:.0f}°, 90 % below {:.0f}°, largest {:.0f}°".format(*angles[name])

    return [
        claim(
            "Full Fisher noise is perpendicular to the contours.",
            angle["full"] < 15,
            f"Angle between its longest axis and the contour's normal: {shown('full')} (within 15° "
            f"at {np.mean(angle['full'] < 15):.0%} of the points); for diagonal Fisher "
            f"{shown('diagonal')}. Part of the variance along the normal: full "
            f"{parts['full']:.2f}, SGD {parts['sgd']:.2f}, diagonal "
            f"{parts['diagonal']:.2f}, isotropic {parts['isotropic']:.2f}.",
        ),
        claim(
            "Full Fisher noise almost recovers SGD's.",
            np.abs(np.log(ratio)).mean() < np.log(1.5),
            f"Total variance {ratio.mean():.2f} times SGD's (from {ratio.min():.2f} to "
            f"{ratio.max():.2f}; the Fisher is not centred), angles that differ by "
            f"{np.median(turned):.1f}° in the median.",
        ),
    ]


def draw(numbers):
    """One-step updates of the first seed from points of one contour; angles of all seeds."""
    seed = int(next(iter(numbers["seeds"])))
    x, y = examples(seed)
    rng = np.random.default_rng(seed)
    figure, axes = grid_of_axes(2, 2, 9, 7.4, sharex=True, sharey=True)
    side = np.stack(np.meshgrid(np.linspace(-3.6, 3.6, 161), np.linspace(-3.6, 3.6, 161)), axis=-1)
    losses = np.mean([0.5 * (side @ a - b) ** 2 for a, b in zip(x, y, strict=True)], axis=0)
    angles = pooled_over_seeds(numbers, "angle")
    levels = losses.min() + EXCESS_LOSS * np.array([0.04, 0.25, 0.5, 1, 2, 3, 4])
    for panel, name in zip(axes.flat, TITLES, strict=True):
        panel.contour(side[..., 0], side[..., 1], losses, levels, colors="0.75", linewidths=0.8)
        for theta in contour(x, y, SHOWN):
            gradient, noises = covariances(x, y, theta)
            if name == "sgd":
                batches = rng.permuted(np.tile(np.arange(len(x)), (60, 1)), axis=1)[:, :SMALL]
                residuals = x[batches] @ theta - y[batches]
                steps = (residuals[..., None] * x[batches]).mean(axis=1)
            else:
                steps = gradient + rng.multivariate_normal(np.zeros(2), noises[name], size=60)
            ends = theta - STEP_SIZE * steps
            panel.plot(*ends.T, ".", color="#0072B2", markersize=3, alpha=0.6)
            target = theta - STEP_SIZE * gradient
            panel.annotate(
                "", target, theta, arrowprops={"arrowstyle": "->", "color": "#D55E00", "lw": 2}
            )
            panel.plot(*theta, "o", color="black", markersize=4)
        note = (
            ""
            if name == "isotropic"
            else f": {np.median(angles[name]):.0f}° to the normal (median)"
        )
        panel.set(title=TITLES[name] + note, aspect="equal", xlim=(-3.6, 3.6), ylim=(-3.2, 3.2))
        panel.grid(False)
    for panel in axes[-1]:
        panel.set_xlabel("θ₁")
    for panel in axes[:, 0]:
        panel.set_ylabel("θ₂")
    figure.text(
        0.5,
        -0.02,
        "Black: points of one contour. Orange: the step without noise. Blue: 60 steps with noise.",
        ha="center",
        fontsize=9,
        color="0.3",
    )
    return figure
