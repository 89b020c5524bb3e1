"""A `fit` that is interrupted and resumed from Keras' backup equals an uninterrupted `fit`."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_persistence import assert_same

import keras_noisylb as nlb

EXAMPLES, M, M_S, EPOCHS = 24, 16, 4, 4  # the last batch of an epoch holds 8 examples
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
rng = np.random.default_rng(0)
X = rng.standard_normal((EXAMPLES, 6)).astype("float32")
Y = rng.integers(0, 3, EXAMPLES)


class Interrupt(keras.callbacks.Callback):
    """Stops a training as a fault would: at the beginning of an epoch, or after a batch of it."""

    def __init__(self, epoch, batch=None):
        super().__init__()
        self.at = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if (epoch, None) == self.at:
            raise InterruptedError

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise InterruptedError


def compiled(noise, eager=True, **options):
    keras.utils.set_random_seed(0)
    model = nlb.NoisyModel(
        keras.Sequential([
            keras.Input((6,)),
            keras.layers.Dense(5, use_bias=False),
            nlb.GhostBatchNormalization(4),
            keras.layers.ReLU(),
            keras.layers.Dense(3),
        ])
    )
    inner = keras.optimizers.SGD(
        nlb.WarmupStepDecay(0.2, warmup_steps=2, decay_steps=(7,)), momentum=0.9
    )
    optimizer = nlb.NoisyOptimizer(inner, noise, noise_fraction=0.65, seed=7, **options)
    model.compile(optimizer, CROSSENTROPY, metrics=["accuracy"], run_eagerly=eager)
    return model


def arrays(model, callbacks):
    return model.fit(X, Y, M, EPOCHS, 0, callbacks, shuffle=False)


def equal_batches(model, callbacks):
    return model.fit(X, Y, EXAMPLES // 2, EPOCHS, 0, callbacks, shuffle=False)


def dataset(model, callbacks):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(M)
    return model.fit(data, epochs=EPOCHS, verbose=0, callbacks=callbacks)


def unknown_length(model, callbacks):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: True).batch(M)
    return model.fit(data, epochs=EPOCHS, verbose=0, callbacks=callbacks)


def batch_change(model, callbacks):
    regime = nlb.BatchChange(8, M, change_epoch=2)
    return regime.fit(model, X, Y, epochs=EPOCHS, verbose=0, callbacks=callbacks, shuffle=False)


# The noise, the call of `fit`, the update at which 0.65 of the training is over, further options.
CASES = {
    "arrays": (nlb.DiagonalFisher(M_S), arrays, 6, {}),
    # Each size of batches is a graph of its own, which takes long to trace.
    "graph": (nlb.Isotropic(0.1), equal_batches, 6, {"eager": False, "placement": "update"}),
    "factors": (nlb.KroneckerFactored(M_S, update_every=2), dataset, 6, {}),
    "unknown length": (nlb.FisherTrace(M_S, estimator="weighted"), unknown_length, 6, {}),
    "batch change": (nlb.FullFisher(M_S), batch_change, 8, {}),
}
AT = [(1,), (2, 0), (3, 0)]


def run(case, folder, *faults):
    noise, fit, _, options = CASES[case]
    model = compiled(noise, **options)
    callbacks = [keras.callbacks.BackupAndRestore(folder), *faults]
    if model.run_eagerly:  # its graph takes long to trace
        callbacks.append(nlb.GradientNoiseMonitor())
    return model, fit(model, callbacks)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return functools.cache(lambda case: run(case, tmp_path_factory.mktemp("whole")))


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
@pytest.mark.parametrize(
    ("case", "at"),
    [(case, AT[1]) for case in CASES]
    + [(case, at) for case in ("arrays", "batch change") for at in (AT[0], AT[2])],
)
def test_resumed_equals_uninterrupted(case, at, tmp_path, uninterrupted):
    whole, history = uninterrupted(case)
    assert whole.optimizer.noise_steps == CASES[case][2] < int(whole.optimizer.iterations)
    with pytest.raises(InterruptedError):
        run(case, tmp_path, Interrupt(*at))
    resumed, rest = run(case, tmp_path)
    assert rest.epoch == list(range(at[0], EPOCHS))
    assert rest.history == {key: values[at[0] :] for key, values in history.history.items()}
    assert_same(whole, resumed)
