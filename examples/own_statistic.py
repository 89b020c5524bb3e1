"""A noise of low rank, with a statistic of its own that is registered from outside the package.

    python examples/own_statistic.py [--examples 2000] [--rank 2] [--steps 20]

A batch of M examples is computed in C microbatches. Microbatch c has n_c examples and the mean
gradient G_c. The C vectors v_c = sqrt(n_c) (G_c - G) give an unbiased estimate of the covariance of
one example's gradient, S = 1/(C - 1) Σ_c v_c v_cᵀ (Wen et al. 2020, equation 3), at no cost beyond
that of the gradient. The noise keeps the leading directions of S only. Its covariance is

    scale² · P S P,    scale² = 1/M_S - 1/M_L,

where P projects onto the `rank` leading eigenvectors of S. Power iterations find them.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import keras_noisylb as nlb
from keras_noisylb.gradients import STATISTICS, Cost, Statistic


class LeadingDirections(Statistic):
    """Vectors b_1, …, b_r, stacked for each variable, with P S P = Σ_j b_j b_jᵀ.

    With the vectors v_c as the rows of V, V Vᵀ is a small C × C matrix. If A holds its r leading
    eigenvectors as columns, the rows of Aᵀ V are the leading eigenvectors of Vᵀ V, each as long as
    the root of its eigenvalue.

    Args:
        rank: r, the number of directions.
        iterations: number of power iterations.
    """

    num_microbatches = 8

    def __init__(self, rank, iterations=50):
        self.rank, self.iterations = rank, iterations

    @classmethod
    def for_noise(cls, noise, model, x):
        return cls(noise.rank)

    @classmethod
    def stored_shapes(cls, noise, model):
        return [(noise.rank, *v.shape) for v in model.trainable_variables]

    def measure(self, objective, batch, draws):
        if batch.start is None:
            raise ValueError("LeadingDirections need a batch that can be cut into microbatches.")
        recorded = objective.record(batch, draws)
        parts = recorded.data_gradients()  # (n_c / M) G_c
        # Every microbatch has a row of its own in what is summed over them.
        row = ops.one_hot(batch.index % self.num_microbatches, self.num_microbatches)
        rows = [None if p is None else ops.tensordot(ops.cast(row, p.dtype), p, 0) for p in parts]
        return recorded, parts, (rows, row * ops.cast(batch.share("float32"), row.dtype))

    def finish(self, sums, gradients, num_examples):
        rows, shares = sums
        vectors = [None if r is None else self._vectors(r, shares, num_examples) for r in rows]
        known = [ops.reshape(v, (self.num_microbatches, -1)) for v in vectors if v is not None]
        products = sum(ops.matmul(v, ops.transpose(v)) for v in known)
        leading = ops.eye(self.num_microbatches, self.rank, dtype=products.dtype)
        for _ in range(self.iterations):
            leading, _ = ops.qr(ops.matmul(products, leading))
        return [None if v is None else ops.tensordot(ops.transpose(leading), v, 1) for v in vectors]

    def _vectors(self, rows, shares, num_examples):
        """The vectors v_c / sqrt(C - 1) of one variable, (C, *shape)."""
        shares = ops.reshape(ops.cast(shares, rows.dtype), (-1, *[1] * (len(rows.shape) - 1)))
        number = ops.sum(ops.cast(shares > 0, rows.dtype))  # fewer than 8 of few examples
        difference = rows - shares * ops.sum(rows, axis=0)  # (n_c / M) (G_c - G)
        factor = ops.sqrt(ops.cast(num_examples, rows.dtype) / (number - 1))
        return factor * ops.divide_no_nan(difference, ops.sqrt(shares))

    def cost(self, layer, size, positions, batch_size):
        products = self.num_microbatches * (self.num_microbatches + self.rank) * size / batch_size
        method = f"{self.rank} directions of {self.num_microbatches} microbatches"
        return Cost(products, method, False, self.rank * size)

    def notes(self, model, batch_size):
        return [f"The noise has rank {self.rank}: that of the leading directions only."]


@keras.saving.register_keras_serializable(package="examples")
class LowRank(nlb.noise.Noise):
    """Noise in the leading directions of the gradients' covariance.

    Args:
        small_batch_size: M_S, the batch size to imitate.
        rank: the number of directions, at most 7.
    """

    statistic = "leading directions"

    def __init__(self, small_batch_size, rank=1):
        self.small_batch_size, self.rank = small_batch_size, rank

    def amplitude(self, num_examples, parts, unit):
        return parts**0.5 * nlb.noise_scale(parts * num_examples, self.small_batch_size)

    def sample(self, statistic, amplitude, draws):
        weights = amplitude * draws.normal((self.rank,), "float32")
        return [
            None if b is None else ops.tensordot(ops.cast(weights, b.dtype), b, 1)
            for b in statistic
        ]

    def get_config(self):
        return {"small_batch_size": self.small_batch_size, "rank": self.rank}


STATISTICS.register("leading directions", LeadingDirections)


def root_mean_square(noise, model, loss, x, y):
    """Root mean square norm of 20 samples of a noise."""

    @tf.function
    def square(seed):
        _, sample = nlb.noisy_gradients(model, loss, x, y, noise, seed)
        return tf.linalg.global_norm(sample) ** 2

    return np.sqrt(np.mean([square(tf.constant(seed)) for seed in range(20)]))


def main():
    """Report the noise, then train with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=2000, help="training images")
    parser.add_argument("--rank", type=int, default=2, help="number of directions")
    parser.add_argument("--steps", type=int, default=20, help="number of updates")
    options = parser.parse_args()

    (x, y), _ = nlb.data.load("fashion_mnist_small")
    x, y = x[: options.examples], y[: options.examples]
    batch_size = options.examples // 4

    keras.utils.set_random_seed(0)
    model = nlb.NoisyModel(nlb.models.MLP(hidden_units=[64], normalization=None))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    norms = {}
    for rank in range(1, LeadingDirections.num_microbatches):
        noise = LowRank(small_batch_size=50, rank=rank)
        norms[rank] = root_mean_square(noise, model, loss, x[:batch_size], y[:batch_size])
        print(f"rank {rank}: the noise has the root mean square {norms[rank]:.3f}")

    noise = LowRank(small_batch_size=50, rank=options.rank)
    print(nlb.report(model, noise, batch_size))
    optimizer = nlb.NoisyOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), noise, seed=0)
    model.compile(optimizer, loss, metrics=["accuracy"])
    history = model.fit(
        x, y, batch_size=batch_size, epochs=max(options.steps // 4, 1), verbose=0
    ).history
    print(f"loss {history['loss'][0]:.2f} -> {history['loss'][-1]:.2f}")
    return norms, history


if __name__ == "__main__":
    norms, history = main()
