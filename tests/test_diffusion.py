"""Each claim of docs/quadratic.md about A.2 is tested under the number of its section there."""

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
from quadratic_problems import STRUCTURES, moment_deviations, of, random_hessian

from keras_noisylb.quadratic import (
    Quadratic,
    diffusion_covariance,
    diffusion_mean,
    noise_factor,
    squared_hellinger,
    uniform_stability,
)

TIMES = (0.0, 0.03, 0.7, 5.0)


# A.2: continuous time


@pytest.mark.parametrize("structure", STRUCTURES[:3])
def test_7_moments_of_the_diffusion(rng, structure):
    hessian, alpha, start = random_hessian(rng), 0.2, rng.normal(size=4)
    quadratic = of(hessian, structure)
    noise = alpha * quadratic.noise_covariance
    covariances = diffusion_covariance(quadratic, TIMES, alpha)
    means = diffusion_mean(quadratic, TIMES, start)
    solution = scipy.integrate.solve_ivp(
        lambda t, s: (noise - hessian @ s.reshape(4, 4) - s.reshape(4, 4) @ hessian).ravel(),
        (0, TIMES[-1]), np.zeros(16), t_eval=TIMES, rtol=1e-10, atol=1e-12, method="DOP853",
    )  # fmt: skip
    np.testing.assert_allclose(covariances.reshape(-1, 16), solution.y.T, atol=1e-8)
    for time, mean, covariance in zip(TIMES, means, covariances, strict=True):
        np.testing.assert_allclose(mean, scipy.linalg.expm(-hessian * time) @ start, atol=1e-12)
        if time < 1:  # Van Loan's block exponential; e^{At} of a long time would lose its digits
            block = np.block([[-hessian, noise], [np.zeros((4, 4)), hessian]])
            exponential = scipy.linalg.expm(block * time)
            oracle = exponential[:4, 4:] @ exponential[:4, :4].T
            np.testing.assert_allclose(covariance, oracle, atol=1e-9)
    stationary = diffusion_covariance(quadratic, np.inf, alpha)
    oracle = scipy.linalg.solve_continuous_lyapunov(hessian, noise)
    np.testing.assert_allclose(stationary, oracle, atol=1e-12)
    np.testing.assert_array_equal(diffusion_mean(quadratic, np.inf, start), np.zeros(4))


def test_7_moments_of_the_simulated_diffusion(rng):
    hessian, alpha, time, steps, runs = random_hessian(rng, 3, 6.0), 0.3, 0.5, 1000, 10_000
    start, exact = np.array([1.0, -2.0, 0.5]), of(hessian, "diagonal")
    theta, interval = np.tile(start, (runs, 1)), time / steps
    for _ in range(steps):
        wiener = np.sqrt(interval) * rng.standard_normal((runs, 3))
        theta = (theta - interval * theta @ hessian
                 + np.sqrt(alpha) * wiener @ exact.noise_factor.T)  # fmt: skip
    mean = diffusion_mean(exact, time, start)
    for claim, agrees in [(exact, True), (of(hessian, "diagonal", np.sqrt(1.2)), False)]:
        covariance = diffusion_covariance(claim, time, alpha)
        of_mean, of_covariance = moment_deviations(theta, mean, covariance)
        assert of_mean < 5 and (of_covariance < 5) == agrees


def test_7_rescaled_updates_are_the_euler_scheme(rng):
    hessian, alpha, time, start = random_hessian(rng), 0.3, 0.5, rng.normal(size=4)
    quadratic = of(hessian, "full")
    errors = []
    for steps in (200, 400):
        interval = time / steps
        scheme = Quadratic(hessian, np.sqrt(alpha / interval) * quadratic.noise_factor)
        means, covariances = scheme.moments(start, steps, interval)
        errors.append([
            np.abs(means[-1] - diffusion_mean(quadratic, time, start)).max(),
            np.abs(covariances[-1] - diffusion_covariance(quadratic, time, alpha)).max(),
        ])  # fmt: skip
    np.testing.assert_allclose(np.divide(*errors), 2, atol=0.1)


@pytest.mark.parametrize("time", [0.05, 1.0, np.inf])
def test_7_determinants(rng, time):
    hessian, alpha = random_hessian(rng), 0.1
    values = np.linalg.eigvalsh(hessian)
    expected = (alpha / 2) ** 4 * np.prod(1 - np.exp(-2 * values * time))

    def determinant(factor):
        return np.linalg.det(diffusion_covariance(Quadratic(hessian, factor), time, alpha))

    assert determinant(noise_factor(hessian, "full")) == pytest.approx(expected)
    assert determinant(np.eye(4)) == pytest.approx(expected / np.prod(values))
    diagonal = determinant(noise_factor(hessian, "diagonal"))
    scaled = determinant(noise_factor(hessian, "diagonal", 0.3))
    assert scaled == pytest.approx(0.3**8 * diagonal)
    product = expected / np.prod(values) * np.prod(np.diag(hessian))
    assert abs(diagonal / product - 1) > 1e-3


# A.2: stability


def test_hellinger_against_quadrature():
    def affinity(x):
        return np.sqrt(scipy.stats.norm.pdf(x, 0.3, 0.7) * scipy.stats.norm.pdf(x, -0.5, 1.1))

    oracle = 1 - scipy.integrate.quad(affinity, -12, 12)[0]
    assert squared_hellinger([0.3], [[0.49]], [-0.5], [[1.21]]) == pytest.approx(oracle)


def test_hellinger_in_two_dimensions(rng):
    mean, other = np.array([0.2, 0.1]), np.array([-0.4, 0.5])
    covariance, other_covariance = random_hessian(rng, 2, 3.0), random_hessian(rng, 2, 2.0)
    axis = np.linspace(-15, 15, 601)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    densities = [
        scipy.stats.multivariate_normal(m, c).pdf(points)
        for m, c in [(mean, covariance), (other, other_covariance)]
    ]
    oracle = 1 - np.sum(np.sqrt(np.prod(densities, axis=0))) * (axis[1] - axis[0]) ** 2
    value = squared_hellinger(mean, covariance, other, other_covariance)
    assert value == pytest.approx(oracle, abs=1e-9)
    assert squared_hellinger(other, other_covariance, mean, covariance) == pytest.approx(value)
    assert squared_hellinger(mean, covariance, mean, covariance) == pytest.approx(0, abs=1e-14)


@pytest.fixture
def two_hessians(rng):
    """Second moments of two data sets that differ in one sample."""
    samples = rng.normal(size=(20, 3)) * [3.0, 1.0, 0.5] @ random_hessian(rng, 3, 2.0)
    changed = np.concatenate([rng.normal(size=(1, 3)), samples[1:]])
    return [s.T @ s / 20 for s in (samples, changed)]


def laws(hessians, factors, time, start=(1.0, 1.0, 1.0), alpha=0.1):
    problems = [Quadratic(h, f) for h, f in zip(hessians, factors, strict=True)]
    return [
        (diffusion_mean(q, time, start), diffusion_covariance(q, time, alpha)) for q in problems
    ]


def test_8_sensitivity_to_the_data(two_hessians):
    full = [noise_factor(h, "full") for h in two_hessians]
    isotropic = [np.eye(3)] * 2
    late = [uniform_stability(laws(two_hessians, f, np.inf)) for f in (full, isotropic)]
    assert late[0] < 1e-6 and late[1] > 0.01
    early = [uniform_stability(laws(two_hessians, f, 1e-6)) for f in (full, isotropic)]
    assert early[0] > 0.01 and early[1] < 1e-3
    at_start = squared_hellinger(np.zeros(3), two_hessians[0], np.zeros(3), two_hessians[1])
    assert early[0] ** 2 == pytest.approx(at_start, rel=1e-3)


def test_8_minimisers_that_differ(two_hessians):
    (_, covariance), (_, other) = laws(
        two_hessians, [noise_factor(h, "full") for h in two_hessians], np.inf
    )
    shift = np.array([0.1, -0.2, 0.05])
    expected = 1 - np.exp(-shift @ shift / (4 * 0.1))
    assert squared_hellinger(shift, covariance, 0 * shift, other) == pytest.approx(expected)


def test_9_scaling_the_noise(two_hessians):
    def distance(multiplier, time):
        factors = [noise_factor(h, "diagonal", multiplier) for h in two_hessians]
        first, second = laws(two_hessians, factors, time)
        without_means = squared_hellinger(0 * first[0], first[1], 0 * second[0], second[1])
        return squared_hellinger(*first, *second), without_means

    total, ratio = distance(1.0, 0.1)
    exponent = np.log((1 - total) / (1 - ratio))
    for multiplier in (0.7, 0.5):
        scaled, scaled_ratio = distance(multiplier, 0.1)
        assert scaled_ratio == pytest.approx(ratio)
        assert np.log((1 - scaled) / (1 - ratio)) == pytest.approx(exponent / multiplier**2)
    assert distance(1e-3, 0.1)[0] == pytest.approx(1)
    stationary = distance(1.0, np.inf)[0]
    assert 1e-4 < stationary < 0.9
    assert distance(1e-3, np.inf)[0] == pytest.approx(stationary)


def test_10_stability_needs_a_factor():
    laws = [([0.0], [[1.0]]), ([0.1], [[1.0]]), ([0.02], [[1.0]])]
    total_variation = 2 * scipy.stats.norm.cdf(0.05) - 1
    stability = uniform_stability(laws)
    assert stability == pytest.approx(squared_hellinger(*laws[0], *laws[1]) ** 0.5)
    assert (round(total_variation, 4), round(stability, 4)) == (0.0399, 0.0353)
    assert stability < total_variation < np.sqrt(stability**2 * (2 - stability**2))
    assert uniform_stability(laws[:1]) == 0
