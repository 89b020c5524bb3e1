"""How a comparison in a folder grows: by regimes, their learning rates, and seeds."""

from keras_noisylb.experiments.regimes import REGIMES


def more(name):
    """The function that joins the lists of two runs in the same folder, for `open_folder`.

    Args:
        name: of the option.
    """
    return lambda found, now: list(dict.fromkeys([*found[name], *now[name]]))


def more_rates(found, now):
    """Join the learning rates of two runs in the same folder, for `open_folder`.

    Args:
        found: the options in the folder.
        now: those of this run.

    Returns:
        Dictionary of regime to rate; `None` if a regime of both, or a rate that others depend on,
        differs.
    """
    there, here = found["learning_rate"], now["learning_rate"]

    def rate(rates, name):
        return rates.get(name, rates["sb" if REGIMES[name].batch == "small" else "lb"])

    shared = {"sb", "lb", *found["regimes"]} & {"sb", "lb", *now["regimes"]}
    if any(rate(there, name) != rate(here, name) for name in shared):
        return None
    kept = {"sb", "lb", *found["regimes"]}
    new = {name: value for name, value in here.items() if name not in kept}
    return {name: value for name, value in there.items() if name in kept} | new


# Each run is of one regime and one seed.
GROWING = {"regimes": more("regimes"), "seeds": more("seeds"), "learning_rate": more_rates}
