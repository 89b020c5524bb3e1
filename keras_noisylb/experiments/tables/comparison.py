"""The numbers of a comparison and their table."""

import numpy as np

from keras_noisylb.experiments.tables.text import shown
from keras_noisylb.experiments.train import seconds_without_graphs


def summarize(regimes, results, options):
    """The numbers of the table, over the seeds that did not diverge.

    Args:
        regimes: dictionary of name to `(regime, learning rate)`.
        results: dictionary of name to list of `(record, history)`, one for each seed.
        options: the options of the comparison.

    Returns:
        Dictionary of name to dictionary.
    """
    summary = {}
    for name, (regime, learning_rate) in regimes.items():
        found = [record for record, _ in results[name]]
        times = [seconds_without_graphs(history) for _, history in results[name]]
        times = [seconds for seconds in times if seconds is not None]
        finished = [record for record in found if record["diverged_epoch"] is None]

        def mean(key, records=finished):
            values = [record[key] for record in records if record[key] is not None]
            return float(np.mean(values)) if values else None

        accuracies = [record["test_accuracy"] for record in finished]
        several = len(accuracies) > 1
        summary[name] = {
            "title": regime.title(options),
            "learning_rate": learning_rate,
            "seeds": len(found),
            "diverged_epochs": [r["diverged_epoch"] for r in found if r not in finished],
            "steps": max(record["steps"] for record in finished or found),
            "train_loss": mean("train_loss"),
            "train_accuracy": mean("train_accuracy"),
            "test_accuracy": mean("test_accuracy"),
            "test_accuracy_std": float(np.std(accuracies, ddof=1)) if several else None,
            "seconds": float(np.mean(times)) if times else None,
            "step_seconds": mean("step_seconds", found),
        }
    base = summary.get("lb", {}).get("step_seconds")
    for row in summary.values():
        step = row["step_seconds"]
        row["step_time_vs_lb"] = step / base if step and base else None
    return summary


def rows(summary, reported):
    """The table as text.

    Args:
        summary: from `summarize`.
        reported: what the accuracy was measured on.

    Returns:
        Tuple of the header and a list of rows.
    """

    def percent(value):
        return shown(None if value is None else 100 * value, ".2f")

    header = (
        "regime", "rate", "steps", "train loss", "train %", f"{reported} %", "sec.",
        "step/LB",
    )  # fmt: skip
    found = []
    for row in summary.values():
        accuracy = percent(row["test_accuracy"])
        if row["test_accuracy_std"] is not None:
            accuracy += f" ± {100 * row['test_accuracy_std']:.2f}"
        if row["diverged_epochs"]:
            epochs = ", ".join(map(str, row["diverged_epochs"]))
            diverged = f"diverged at epoch {epochs}"
            if row["test_accuracy"] is None:
                accuracy = diverged
            else:
                part = f"{len(row['diverged_epochs'])} of {row['seeds']} seeds"
                accuracy += f" ({part} {diverged})"
        found.append((
            row["title"],
            format(row["learning_rate"], "g"),
            str(row["steps"]),
            shown(row["train_loss"], ".4f"),
            percent(row["train_accuracy"]),
            accuracy,
            shown(row["seconds"], ".1f"),
            shown(row["step_time_vs_lb"], ".2f"),
        ))
    return header, found


def caption(options, reported):
    """The caption of the table.

    Args:
        options: the options of the comparison.
        reported: what the accuracy was measured on.
    """
    seeds = len(options.seed_list)
    return (
        f"{options.model} on {options.dataset}, {options.epochs} epochs, "
        f"{seeds} seed{'s' * (seeds > 1)}"
        f"{' (mean ± standard deviation)' if seeds > 1 else ''}. "
        "rate: peak learning rate. train loss, train % and "
        f"{reported} %: loss and accuracies in inference mode after training. "
        "sec.: training without evaluation and without the time in which Keras builds its graph. "
        "step/LB: median time of an update against LB's, of the updates with noise where there "
        "are any."
    )
