# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # What the noise looks like
#
# This page repeats two pictures of the paper (Wen et al., *An Empirical Study of Large-Batch SGD
# with Structured Covariance Noise*, AISTATS 2020) for problems with two weights, where everything
# can be drawn: the noise of one step (their Figure 1), and the effect of noise on many steps
# (Figure 4). Change the numbers in the next cell and run all cells again: this takes seconds.

# %% tags=["parameters"]
seed = 0
small_batch_size = 8
hessian = [[2.0, 1.5], [1.5, 2.0]]  # the bowl of the second part
start = (4.0, 3.0)
num_runs = 1000

# %%
import matplotlib.pyplot as plt
import numpy as np

from keras_noisylb.experiments.figures import figure1, figure4
from keras_noisylb.quadratic import Quadratic, noise_factor

# %% [markdown]
# ## 1. A regression with two weights
#
# There are 512 examples, each with two inputs x and a target y. The model predicts θ₁ x₁ + θ₂ x₂,
# and the *loss* of an example is half its squared error. The mean loss over all examples is a bowl
# over the plane of θ = (θ₁, θ₂). A *contour* is a line of equal loss.

# %%
x, y = figure1.examples(seed)
points = figure1.contour(x, y, number=200)
best = points.mean(axis=0)
plt.figure(figsize=(4, 3.4))
plt.plot(*points.T, color="0.5", label="a contour")
plt.plot(*best, "k+", label="least loss")
plt.gca().set(xlabel="θ₁", ylabel="θ₂", aspect="equal")
plt.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## 2. Where the noise comes from
#
# At one point of the contour, every example has a different gradient. The gradient of the loss is
# the mean over all examples. The mean over a small batch is a point near it.

# %%
theta = figure1.contour(x, y, number=8)[3]
gradients = (x @ theta - y)[:, None] * x
rng = np.random.default_rng(seed)
batches = [rng.choice(len(x), small_batch_size, replace=False) for _ in range(200)]
small_batch_gradients = np.array([gradients[batch].mean(axis=0) for batch in batches])
plt.figure(figsize=(4, 3.4))
plt.plot(*gradients.T, ".", color="0.8", label="single examples")
plt.plot(*small_batch_gradients.T, ".", label=f"batches of {small_batch_size}")
plt.plot(*gradients.mean(axis=0), "k*", markersize=12, label="all examples")
plt.gca().set(xlabel="gradient, θ₁", ylabel="gradient, θ₂", aspect="equal")
plt.legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# ## 3. Imitating the noise
#
# The *covariance* of a cloud of points, here a 2 × 2 matrix, describes its spread. The noise that
# is added to the exact gradient should have the covariance of the small-batch gradients. There are
# several approximations; g is the gradient of one example:
#
# | noise | covariance |
# |---|---|
# | full Fisher | the mean of g gᵀ, times 1/M_S − 1/M_L |
# | diagonal Fisher | the same without the off-diagonal entries: one variance for each weight |
# | isotropic | the same fixed variance in every direction |
#
# M_S is the small batch size and M_L the large batch size, here all 512 examples. With millions of
# weights, the full matrix is too large to store; the diagonal has the size of the gradient.

# %%
gradient, covariances = figure1.covariances(x, y, theta, small=small_batch_size)
print(f"small batches (measured)  {np.cov(small_batch_gradients.T).round(4).tolist()}")
for name, covariance in covariances.items():
    print(f"{name:25} {covariance.round(4).tolist()}")

# %% [markdown]
# `sgd` is the exact covariance of the small batch. *SGD*, stochastic gradient descent, is training
# with small batches.
#
# ## 4. One step from several points
#
# Black: points of one contour. Orange: a step with the exact gradient. Blue: 60 steps with noise.


# %%
def draw_steps(panel, name):
    """Steps with the noise called `name`, from eight points of a contour."""
    panel.plot(*points.T, color="0.75")
    for theta in figure1.contour(x, y, number=8):
        gradient, covariances = figure1.covariances(x, y, theta, small=small_batch_size)
        noise = rng.multivariate_normal(np.zeros(2), covariances[name], size=60)
        panel.plot(*(theta - 0.5 * (gradient + noise)).T, ".", color="#0072B2", markersize=2)
        panel.plot(*np.transpose([theta, theta - 0.5 * gradient]), color="#D55E00", linewidth=2)
        panel.plot(*theta, "ko", markersize=4)
    panel.set(title=name, aspect="equal", xticks=[], yticks=[])


figure, axes = plt.subplots(1, 4, figsize=(9, 4), layout="constrained", sharex=True, sharey=True)
for panel, name in zip(axes.flat, covariances, strict=True):
    draw_steps(panel, name)
plt.show()

# %% [markdown]
# Is full Fisher noise perpendicular to the contours, as the paper says? Here is the angle between
# the longest axis of the noise and the normal of the contour, at 64 points.

# %%
angles = {"sgd": [], "full": [], "diagonal": []}
for theta in figure1.contour(x, y, number=64):
    gradient, covariances = figure1.covariances(x, y, theta, small=small_batch_size)
    for name, found in angles.items():
        found.append(figure1.alignment(gradient, covariances[name])[0])
for name, found in angles.items():
    print(f"{name:10} median {np.median(found):3.0f}°, largest {max(found):3.0f}°")

# %% [markdown]
# It is nearly perpendicular at most points, but not everywhere: the largest angles are at the
# narrow ends of the ellipse. The page `docs/figures.md` explains the reason.
#
# ## 5. Many steps in a bowl
#
# Now the loss is L(θ) = ½ θᵀ A θ. A is called the *Hessian*. It contains the second derivatives,
# and its *eigenvalues* are the steepness of the bowl along its axes. In the theory of the paper,
# the Fisher matrix equals A. `noise_factor` returns a matrix C. With independent random numbers ξ,
# the noise C ξ has this covariance, full or diagonal.

# %%
bowls = {name: Quadratic(hessian, noise_factor(hessian, name)) for name in ("full", "diagonal")}
print("steepness along the axes:", bowls["full"].eigenvalues.round(2))
for name, bowl in bowls.items():
    print(f"{name}: variance along these axes {bowl.noise_variances.round(2)}")

# %% [markdown]
# Full noise is largest along the steep axis. Diagonal noise has the same total variance, divided
# differently between the axes. The pictures show one run of 500 updates for each noise, every tenth
# update:

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.4), layout="constrained")
for panel, (name, bowl) in zip(axes, bowls.items(), strict=True):
    path = bowl.simulate(start, steps=500, step_size=0.1, every=10, seed=seed)[:, 0]
    panel.plot(*path.T, "o-", markersize=3, linewidth=0.8)
    panel.plot(*path[0], "ks", label="start")
    panel.set(title=f"{name} Fisher noise", xlabel="θ₁", ylabel="θ₂", aspect="equal")
plt.show()

# %% [markdown]
# A single run shows little. The mean loss over all possible runs can be computed exactly. It agrees
# with the mean over many simulated runs:

# %%
plt.figure(figsize=(5.5, 3.2))
for name, bowl in bowls.items():
    exact = bowl.expected_losses(start, steps=80, step_size=0.1)
    runs = bowl.loss(bowl.simulate(start, 80, 0.1, runs=num_runs, seed=seed))
    (line,) = plt.plot(exact, label=f"{name}, exact")
    plt.plot(runs.mean(axis=1), ".", color=line.get_color(), label=f"{name}, {num_runs} runs")
plt.gca().set(xlabel="update", ylabel="mean loss", ylim=(0, 4 * exact[-1]))
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 6. Is diagonal noise faster?
#
# The next cell prints the number of updates until the loss of a run is first below a level: the
# mean over the runs, ± the standard error of the difference. It depends on the start: in the bowl
# of the paper, (3, 3) is along the steep axis and (3, −3) along the flat axis.


# %%
def updates_until(level, place):
    """For each noise, the number of updates that each run takes to a loss below the level."""
    return [
        figure4.first_below(
            bowl.loss(bowl.simulate(place, 200, 0.1, runs=num_runs, seed=(seed, number))), level
        )
        for number, bowl in enumerate(bowls.values())
    ]


for place in (start, (3.0, 3.0), (3.0, -3.0)):
    print(f"start {place}")
    for level in (0.3, 0.03):
        full, diagonal = updates_until(level, place)
        error = np.sqrt((full.var() + diagonal.var()) / num_runs)
        print(
            f"  loss below {level:4}: full {full.mean():5.1f}, diagonal {diagonal.mean():5.1f} "
            f"(± {error:.1f})"
        )

# %% [markdown]
# ## 7. The final loss
#
# After many updates, the effect of the start has vanished, and the mean loss no longer falls.

# %%
final = {name: bowl.expected_losses(start, 500, 0.1)[-1] for name, bowl in bowls.items()}
lower = min(final, key=final.get)
print(", ".join(f"{name}: {loss:.4f}" for name, loss in final.items()))
print(f"{lower} noise ends at the lower loss." if np.ptp(list(final.values())) > 1e-9 else "Equal.")

# %% [markdown]
# Try `hessian = [[3.5, 0.0], [0.0, 0.5]]` in the first cell. The axes of the bowl are then the axes
# of the weights, and full and diagonal noise are the same.
