"""A figure is computed, or continued, and written."""

import importlib
import pathlib

from keras_noisylb.experiments import folders, records
from keras_noisylb.experiments.records import CompareError
from noisylb.protocol.figures import FIGURES
from noisylb.protocol.names import unknown

UNCOMPARED = ("output", "data_dir", "quiet")  # they do not change a result


def module_of(name):
    """The module of a figure.

    Args:
        name: one of `FIGURES`.

    Raises:
        CompareError: if there is no such figure.
    """
    if name not in FIGURES:
        raise CompareError(str(unknown("FIGURE", name, FIGURES)))
    return importlib.import_module(f"keras_noisylb.experiments.figures.{FIGURES[name].module}")


def make(name, setup, command, say):
    """Compute one figure, or continue it, and write its picture as PNG and SVG and its JSON.

    The files have the name of the figure's module. Finished parts in the same folder are used
    again: an interrupted figure continues, and a finished one is only drawn again.

    Args:
        name: one of `noisylb.protocol.figures.FIGURES`.
        setup: a `noisylb.protocol.figures.FigureSetup`; its options say the folder, `output`.
        command: the command line that asked for it, for the record.
        say: function that prints a line.

    Returns:
        Dictionary of what the JSON holds.

    Raises:
        CompareError: if there is no such figure, or if the folder holds one of other options.
        OSError: if the results cannot be written; what was finished is kept.

    Example:
    ```python
    from noisylb.protocol.figures import PRESETS, FigureSetup

    size = module_of("4").SIZES["quick"]
    make("4", FigureSetup(PRESETS["quick"], size), "", print)["claims"]
    ```
    """
    figure = module_of(name)
    of_tables = not hasattr(figure, "SIZES")
    options = {} if of_tables else {**setup.options.resolved(), **setup.size}
    folder = pathlib.Path(setup.options.output)
    path = folder / f"{FIGURES[name].module}.json"

    def compute():
        try:
            numbers = figure.compute(setup, folder, say)
        except ValueError as error:
            raise CompareError(str(error)) from error
        numbers = records.rounded(records.plain(numbers))
        return {"command": command, "versions": records.versions(), "numbers": numbers}

    found = compute() if of_tables else None  # it writes nothing, and may find nothing to draw
    with folders.alone(folder):
        folders.open_folder(folder, {"figure": name, **options}, UNCOMPARED)
        if not of_tables:
            found = records.read_json(path, ("command", "versions", "numbers"), say)
            if found is None:
                found = compute()
            else:
                say("The numbers were computed before; only drawn again.")
        result = {
            "figure": name,
            "command": found["command"],
            "options": {key: value for key, value in options.items() if key not in UNCOMPARED},
            "versions": found["versions"],
            "claims": figure.verdict(found["numbers"]),
            "numbers": found["numbers"],
        }
        records.write_json(path, result, indent=None)
        picture = figure.draw(found["numbers"])
        for kind in ("png", "svg"):
            with records.replacing(path.with_suffix(f".{kind}")) as temporary:
                picture.savefig(temporary, format=kind, dpi=110, bbox_inches="tight")
        return result
