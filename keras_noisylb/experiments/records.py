"""The files of a run: written atomically, and checked when they are read again."""

import contextlib
import json
import math
import os
import pathlib
import platform
import subprocess
from importlib import metadata

MEASURED = ("loss", "accuracy", "seconds", "steps", "epoch")  # ends of the names of numbers


class CompareError(Exception):
    """A request that cannot be fulfilled. The message says why, and what to change."""


def plain(value):
    """A value as JSON can hold it: numbers that are not finite become `None`.

    Args:
        value: numbers, strings, lists and dictionaries, nested.
    """
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def rounded(value, digits=6):
    """A value with fewer digits, so that the history of many updates makes a small file.

    Args:
        value: numbers, strings, lists and dictionaries, nested.
        digits: significant digits that floats keep.

    Example:
    >>> rounded({"loss": [0.123456789, 2]})
    {'loss': [0.123457, 2]}
    """
    if isinstance(value, dict):
        return {key: rounded(entry, digits) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry, digits) for entry in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


@contextlib.contextmanager
def replacing(path):
    """Write a file atomically: a reader finds the old or the new one, never a part.

    Yields:
        The path to write to. What is there becomes the file at the end of the block, and is removed
        where the block fails.
    """
    temporary = path.with_name(f"unfinished-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path, text):
    """Write a text file, by `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value, indent=1):
    """Write plain data as JSON, by `write_text`.

    Args:
        path: of the file.
        value: its new content.
        indent: spaces of one level, or `None` for a single line.
    """
    write_text(path, json.dumps(plain(value), indent=indent, allow_nan=False) + "\n")


def set_aside(path, why, say):
    """Rename a file that cannot be used, without overwriting one that was set aside before.

    Args:
        path: of the file.
        why: the fault, as the end of a sentence that begins with the path.
        say: function that prints a line.
    """
    for number in range(1000):
        target = path.with_name(f"{path.name}.aside{number or ''}")
        if not target.exists():
            os.replace(path, target)
            say(f"{path} {why}; it was renamed to {target.name} and its run starts again.")
            return


def differences(there, now, uncompared=(), names=("there", "now")):
    """The differences between two dictionaries of options, in words.

    Args:
        there: the options in a folder.
        now: the options of this call.
        uncompared: names of the options that may differ.
        names: of the two, in words.

    Returns:
        A string, empty where they agree.
    """
    return "; ".join(
        f"{name} ({names[0]} {there.get(name)!r}, {names[1]} {now.get(name)!r})"
        for name in dict.fromkeys([*now, *there])
        if name not in uncompared and there.get(name) != now.get(name)
    )


def refuse_constant(name):
    """Refuse NaN and infinity in JSON: `plain` writes none.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{name} is no number that a record has.")


def check_numbers(record):
    """Check that measured numbers can have been measured.

    Args:
        record: dictionary; `None` stands for a number that was not finite. Lists are not looked at.

    Raises:
        ValueError: if one is no number, or an accuracy is not between 0 and 1.
    """
    if not isinstance(record, dict):
        raise ValueError("The numbers of a record are a dictionary.")
    for name, value in record.items():
        if value is None or isinstance(value, list) or not name.endswith(MEASURED):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} is {value!r}, no number.")
        if name.endswith("accuracy") and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}, not between 0 and 1.")


def read_json(path, required, say):
    """Read a JSON object; one that is damaged is set aside.

    Args:
        path: of the file.
        required: the keys that it must have.
        say: function that prints a line.

    Returns:
        The object, or `None` if there is none that can be used.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse_constant)
        if not isinstance(value, dict) or not set(required) <= value.keys():
            raise ValueError
        check_numbers(value)
        check_numbers(value.get("metrics", {}))
    except FileNotFoundError:
        return None
    except ValueError:
        set_aside(path, "cannot be read", say)
        return None
    return value


def versions():
    """The versions of the packages that a result depends on, and the git revision, if any."""
    packages = {
        name: metadata.version(name) for name in ("keras", "tensorflow", "keras-noisylb", "numpy")
    }
    folder = pathlib.Path(__file__).parent
    try:
        git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
        # A file that git does not know lies in site-packages of someone else's repository.
        known = ["git", "-C", str(folder), "ls-files", "--error-unmatch", "__init__.py"]
        subprocess.run(known, capture_output=True, check=True, timeout=10)
        revision = subprocess.run(git, capture_output=True, check=True, timeout=10, text=True)
        revision = revision.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        revision = None
    return {**packages, "python": platform.python_version(), "git_revision": revision}
