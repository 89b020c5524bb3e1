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

from keras_noisylb.quadratic import Quadratic, noise_factor

# %% [markdown]
# ## 1. A regression with two weights
#
# There are 512 examples, each with two inputs x and a target y. The model predicts θ₁ x₁ + θ₂ x₂,
# and the *loss* of an example is half its squared error. The mean loss over all examples is a bowl
# over the plane of θ = (θ₁, θ₂). A *contour* is a line of equal loss.

# %%
rng = np.random.default_rng(seed)
turn = np.array([[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]])
x = rng.normal(size=(512, 2)) * np.sqrt([1.0, 0.1]) @ turn.T
y = 0.3 * rng.normal(size=512)  # the best θ is near 0


def contour(number, loss=0.5):
    """Points θ at which the mean loss is this much above the least."""
    steepness, axes = np.linalg.eigh(x.T @ x / len(x))
    angles = 2 * np.pi * np.arange(number) / number
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return best + np.sqrt(2 * loss) * circle / np.sqrt(steepness) @ axes.T


best = np.linalg.lstsq(x, y, rcond=None)[0]
points = contour(200)
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
def example_gradients(theta):
    """The gradient of each example, in rows."""
    return (x @ theta - y)[:, None] * x


theta = contour(8)[3]
gradients = example_gradients(theta)
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
def covariances(theta):
    """The covariance of each noise at a point."""
    gradients, scale = example_gradients(theta), 1 / small_batch_size - 1 / len(x)
    fisher = scale * gradients.T @ gradients / len(x)
    return {
        "SGD": scale * np.cov(gradients.T),
        "isotropic": 0.1**2 * np.eye(2),
        "full": fisher,
        "diagonal": np.diag(np.diag(fisher)),
    }


print(f"small batches (measured)  {np.cov(small_batch_gradients.T).round(4).tolist()}")
for name, covariance in covariances(theta).items():
    print(f"{name:25} {covariance.round(4).tolist()}")

# %% [markdown]
# `SGD` is the exact covariance of the small batch. *SGD*, stochastic gradient descent, is training
# with small batches.
#
# ## 4. One step from several points
#
# Black: points of one contour. Orange: a step with the exact gradient. Blue: 60 steps with noise.


# %%
def draw_steps(panel, name):
    """Steps with the noise called `name`, from eight points of a contour."""
    panel.plot(*points.T, color="0.75")
    for theta in contour(8):
        gradient = example_gradients(theta).mean(axis=0)
        noise = rng.multivariate_normal(np.zeros(2), covariances(theta)[name], size=60)
        panel.plot(*(theta - 0.5 * (gradient + noise)).T, ".", color="#0072B2", markersize=2)
        panel.plot(*np.transpose([theta, theta - 0.5 * gradient]), color="#D55E00", linewidth=2)
        panel.plot(*theta, "ko", markersize=4)
    panel.set(title=name, aspect="equal", xticks=[], yticks=[])


figure, axes = plt.subplots(1, 4, figsize=(9, 4), layout="constrained", sharex=True, sharey=True)
for panel, name in zip(axes.flat, covariances(theta), strict=True):
    draw_steps(panel, name)
plt.show()

# %% [markdown]
# Is full Fisher noise perpendicular to the contours, as the paper says? Here is the angle between
# the longest axis of the noise and the normal of the contour, at 64 points.

# %%
angles = {"SGD": [], "full": [], "diagonal": []}
for theta in contour(64):
    normal = example_gradients(theta).mean(axis=0)
    for name, found in angles.items():
        longest = np.linalg.eigh(covariances(theta)[name])[1][:, -1]
        cosine = abs(longest @ normal) / np.linalg.norm(normal)
        found.append(np.degrees(np.arccos(min(1.0, cosine))))
for name, found in angles.items():
    print(f"{name:10} median {np.median(found):3.0f}°, largest {max(found):3.0f}°")

# %% [markdown]
# It is nearly perpendicular at most points, but not everywhere: the largest angles are at the
# narrow ends of the ellipse. The page `docs/figures.md` explains the reason. Diagonal noise is much
# further from perpendicular.
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
    found = []
    for number, bowl in enumerate(bowls.values()):
        losses = bowl.loss(bowl.simulate(place, 200, 0.1, runs=num_runs, seed=(seed, number)))
        below = losses < level
        found.append(np.where(below.any(axis=0), below.argmax(axis=0), len(losses)))
    return found


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
# ## What you have learned

# %%
sgd, full, diagonal = (np.median(found) for found in angles.values())
print("1. Full noise has the shape of a small batch's noise. The median angle to the normal is")
print(f"   {full:.0f}°, of SGD {sgd:.0f}°, of diagonal noise {diagonal:.0f}°.")
print("2. Diagonal noise has the same total variance, but less along the steep axis of this bowl.")
print("3. Neither noise is always faster: it depends on the start and on the level.")

# %% [markdown]
# The first point is the reason why this package recommends full noise (`docs/choosing.md`).
#
# ## What to try next
#
# - `hessian = [[3.5, 0.0], [0.0, 0.5]]` in the first cell. The axes of the bowl are then the axes
#   of the weights, and full and diagonal noise are the same.
# - `noisylb figure 1` and `noisylb figure 4` make the figures of the paper with several seeds.
# - `05_generalisation_gap` trains a network with both noises.
