"""The first of the bundled images, read once for all tests of a process."""

import functools

import keras_noisylb as nlb

load = functools.cache(nlb.data.load)


def use(patch, train=None, test=200):
    """Let `data.load` give only some images."""

    def first(name, data_dir=None):
        (x, y), (x_test, y_test) = load(name, data_dir=data_dir)
        return (x[:train], y[:train]), (x_test[:test], y_test[:test])

    patch.setattr(nlb.data, "load", first)
