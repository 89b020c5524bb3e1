"""Names and seeds, as every command reads and refuses them."""

import difflib

MOST_SEEDS = 1000  # of a number that is meant as the seed, say, no run should begin
SEEDS_HELP = "Number of seeds (3 means 0,1,2), or a list of seeds such as 4,7."


def nearest(name, known):
    """The question whether a known name was meant.

    Args:
        name: what was received.
        known: the names that there are.

    Returns:
        A sentence that begins with a space; empty if no name is near.

    Example:
    >>> nearest("LeNet5", ["lenet", "mlp"])
    ' Did you mean lenet?'
    """
    by_letters = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.strip().lower(), by_letters, 3)
    return f" Did you mean {' or '.join(by_letters[one] for one in near)}?" if near else ""


def counted(number, noun):
    """A number of things in words.

    Args:
        number: how many.
        noun: what, in the singular.

    Example:
    >>> counted(1, "run"), counted(2, "run")
    ('1 run', '2 runs')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def unknown(flag, name, known):
    """The error for a name that does not exist.

    Args:
        flag: where it was given.
        name: what was received.
        known: the names that there are.

    Returns:
        A `ValueError`.
    """
    return ValueError(
        f"{flag} received {name!r}, expected one of {', '.join(known)}.{nearest(name, known)} "
        f"Change {flag}."
    )


def chosen(flag, text, known):
    """The names of a list on the command line.

    Args:
        flag: where it was given.
        text: names separated by commas; `None` for all.
        known: the names that there are.

    Returns:
        Tuple of names, in the order of `known`.

    Raises:
        ValueError: if there is none, or one that is not known.
    """
    if text is None:
        return tuple(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ValueError(
            f"{flag} received {text!r}, expected names of {', '.join(known)}, separated by commas. "
            f"Change {flag}."
        )
    for name in names:
        if name not in known:
            raise unknown(flag, name, known)
    return tuple(name for name in known if name in names)


def seed_list(text):
    """The seeds that `--seeds` names.

    Args:
        text: a number of seeds, counted from 0, or seeds separated by commas.

    Returns:
        Tuple of different integers.

    Raises:
        ValueError: if it can be neither.

    Example:
    >>> seed_list("3"), seed_list("4,7"), seed_list("4,")
    ((0, 1, 2), (4, 7), (4,))
    """
    try:
        seeds = tuple(int(seed) for seed in text.split(",") if seed.strip())
    except ValueError:
        seeds = ()
    expected = "a positive number of seeds, or a list of different seeds (4,7)"
    if "," not in text and seeds:
        if seeds[0] > MOST_SEEDS:
            expected, seeds = f"at most {MOST_SEEDS} seeds", ()
        seeds = tuple(range(*seeds[:1])) if seeds else ()
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= s < 2**31 for s in seeds):
        raise ValueError(f"--seeds received {text!r}, expected {expected}. Change --seeds.")
    return seeds
