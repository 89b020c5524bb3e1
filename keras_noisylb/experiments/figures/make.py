"""The figures of the paper, repeated: for each a picture and the numbers behind it."""

import importlib
import pathlib

from keras_noisylb.experiments import records
from keras_noisylb.experiments.records import CompareError

__all__ = ["CompareError", "FIGURES", "make"]

FIGURES = ("1", "2", "3", "4", "5a", "5b")

UNCOMPARED = ("output", "data_dir", "quiet")  # where things lie and what is printed


def make(number, preset, command, say):
    """Compute one figure, or continue it, and write `figure<number>.png`, `.svg` and `.json`.

    What was finished before in the same folder is used again, so an interrupted figure continues,
    and a finished one is only drawn anew.

    Args:
        number: "1", "2", "3", "4", "5a" or "5b".
        preset: `noisylb.protocol.figures.Preset`; its options say the folder, `output`.
        command: what it was asked for by, for the record.
        say: function that prints a line.

    Returns:
        Dictionary of what the JSON holds.

    Raises:
        CompareError: if there is no such figure, or if the folder holds one of other options.
        OSError: if the results cannot be written; what was finished is kept.

    Example:
    ```python
    from noisylb.protocol.figures import PRESETS

    make("4", PRESETS["quick"], "", print)["claims"]
    ```
    """
    if number not in FIGURES:
        raise CompareError(
            f"FIGURE received {number!r}, expected one of {', '.join(FIGURES)}. Choose one of them."
        )
    figure = importlib.import_module(f"keras_noisylb.experiments.figures.figure{number}")
    folder, options = pathlib.Path(preset.options.output), preset.resolved()
    records.open_folder(folder, {"figure": number, **options}, UNCOMPARED)
    path = folder / f"figure{number}.json"
    found = records.read_json(path, ("numbers",), say)
    numbers = found["numbers"] if found else None
    if numbers is None:
        try:
            numbers = records.rounded(records.plain(figure.compute(preset, folder, say)))
        except ValueError as error:
            raise CompareError(str(error)) from error
    else:
        say("The numbers were computed before; only drawn again.")
    result = {
        "figure": number,
        "command": found["command"] if found else command,
        "options": {name: value for name, value in options.items() if name not in UNCOMPARED},
        "versions": found["versions"] if found else records.versions(),
        "claims": figure.verdict(numbers),
        "numbers": numbers,
    }
    records.write_json(path, result, indent=None)
    picture = figure.draw(numbers)
    for kind in ("png", "svg"):
        with records.replacing(path.with_suffix(f".{kind}")) as temporary:
            picture.savefig(temporary, format=kind, dpi=110, bbox_inches="tight")
    return result
