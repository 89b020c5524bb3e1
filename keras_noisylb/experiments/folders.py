"""The folder of a run: of one command at a time, and of one set of options."""

import contextlib
import json

from filelock import FileLock, Timeout

from keras_noisylb.experiments import records
from keras_noisylb.experiments.records import CompareError

# What trainings, figures, tables and searches write in their folder, or in that of a seed.
RESULTS = ("history.json", "record.json", "run.json", "summary.json", "oracle.json", "figure*.json")


@contextlib.contextmanager
def alone(folder):
    """Lock a folder: two commands would write into the same runs.

    Args:
        folder: `pathlib.Path` of all runs; made if need be.

    Raises:
        CompareError: if another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise CompareError(
            f"Another `noisylb` process works in {folder}. Wait until it has ended, or choose "
            "another --output."
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_folder(folder, options, uncompared, growing=None):
    """Check that a folder is empty, or belongs to the same options. Changes nothing.

    Args:
        folder: `pathlib.Path`.
        options: dictionary of the resolved options.
        uncompared: names of the options that may differ.
        growing: dictionary of the names of options with independent parts, to functions of the
            options in the folder and of these. They return the value with the parts of both, or
            `None` if they disagree.

    Returns:
        Its `config.json` with the options of both; `None` where nothing is there.

    Raises:
        CompareError: if the folder holds a run of other options, or of unknown ones.
    """
    path = folder / "config.json"
    if not path.exists():
        for name in RESULTS:
            for found in (*folder.glob(name), *folder.glob(f"*-seed*/{name}")):
                raise unknown(f"{path} is missing", found)
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found, now = config["options"], plain_options(options)
        grown = {name: grow(found, now) for name, grow in (growing or {}).items()}
        grown = {name: value for name, value in grown.items() if value is not None}
        differing = records.differences(found, now, (*uncompared, *grown))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise unknown(f"{path} cannot be read", "the results beside it") from None
    if differing:
        raise CompareError(
            f"{folder} holds a run of other options: {differing}. "
            "Choose another --output, or repeat that run's options to continue it."
        )
    return {**config, "options": {**found, **grown}}


def plain_options(options):
    """Options as JSON gives them back."""
    return json.loads(json.dumps(records.plain(options)))


def open_folder(folder, options, uncompared, growing=None):
    """Make the folder of a run, or check that the one found belongs to the same options.

    Args:
        folder: `pathlib.Path`.
        options: dictionary of the resolved options.
        uncompared: names of the options that may differ.
        growing: as for `check_folder`; what is new is recorded.

    Raises:
        CompareError: if the folder holds a run of other options, or of unknown ones; nothing in it
            is changed.
    """
    path, config = folder / "config.json", check_folder(folder, options, uncompared, growing)
    if config is None:
        folder.mkdir(parents=True, exist_ok=True)
        versions = records.versions()
        records.write_json(path, {"options": plain_options(options), "versions": versions})
    elif config != json.loads(path.read_text(encoding="utf-8")):
        records.write_json(path, config)
    else:
        write_probe(folder)


def unknown(fault, results):
    """The error for results of unknown options.

    Args:
        fault: why the options are unknown, as the beginning of a sentence.
        results: what was found.

    Returns:
        A `CompareError`.
    """
    return CompareError(
        f"{fault}, so the options of {results} are unknown. Choose another --output, or move that "
        "folder away."
    )


def write_probe(folder):
    """Fail before the training, not after its first epoch, where nothing can be written.

    Args:
        folder: `pathlib.Path`.
    """
    probe = folder / ".probe"
    probe.touch()
    probe.unlink()
