"""Results of a search: the score of each trial and seed."""

import dataclasses
import re
import statistics
from typing import Any

import keras_tuner


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """One trial of a search.

    Attributes:
        trial_id: name of the trial in KerasTuner.
        status: "COMPLETED", "FAILED", or "RUNNING" if the search was interrupted.
        score: mean over seeds of the objective at each seed's best epoch, or `None`.
        seed_scores: objective of each seed at its best epoch.
        std: sample standard deviation of `seed_scores`, `None` for fewer than two seeds.
        values: the hyperparameters.
        reason: reason of the failure, or `None`.
    """

    trial_id: str
    status: str
    score: float | None
    seed_scores: dict[int, float]
    std: float | None
    values: dict[str, Any]
    reason: str | None


def results(tuner: keras_tuner.Tuner) -> list[TrialResult]:
    """The trials of a search over a `NoisyHyperModel`.

    Args:
        tuner: any KerasTuner tuner, after `search` or after reloading.

    Returns:
        The completed trials, best first, then all others.

    Example:
    ```python
    for trial in results(tuner):
        print(trial.trial_id, trial.score, trial.std, trial.values, trial.reason)
    ```
    """
    objective = tuner.oracle.objective
    trials = tuner.oracle.get_best_trials(len(tuner.oracle.trials))
    return [_result(trial, objective) for trial in trials]


def _result(trial, objective):
    completed = trial.status == "COMPLETED"
    seed_scores = {
        seed: objective.get_value(logs) for seed, logs in sorted(_logs_of_seeds(trial).items())
    }
    return TrialResult(
        trial_id=trial.trial_id,
        status=trial.status,
        score=float(trial.score) if completed else None,
        seed_scores=seed_scores,
        std=statistics.stdev(seed_scores.values()) if len(seed_scores) > 1 else None,
        values=dict(trial.hyperparameters.values),
        reason=_reason(trial) if trial.status == "FAILED" else None,
    )


def _logs_of_seeds(trial):
    logs = {}
    for name in trial.metrics.metrics:
        if found := re.fullmatch(r"(.+)_seed_(\d+)", name):
            value = float(trial.metrics.get_best_value(name))
            logs.setdefault(int(found[2]), {})[found[1]] = value
    return logs


def _reason(trial):
    if trial.message is None:  # KerasTuner gives no message if the score is NaN
        return "The score is not a number."
    lines = trial.message.strip().splitlines()
    # The exception follows the last frame, whose lines are indented.
    frames = [number for number, line in enumerate(lines) if line.startswith("  ")]
    after = lines[frames[-1] + 1 :] if frames else lines
    return "\n".join(after)
