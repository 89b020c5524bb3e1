"""The problem that is trained: a function that builds a network, and the examples."""

import hashlib
import importlib
import inspect
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_noisylb import data, models
from keras_noisylb.data import files
from keras_noisylb.gradients.loss import call_model
from noisylb.protocol.names import nearest

OWN_OPTIONS = ("normalization", "ghost_batch_size", "l2")  # of models that have them
KINDS = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


class Examples(NamedTuple):
    """The arrays of a data set and its number of classes."""

    train: tuple
    test: tuple
    num_classes: int

    @property
    def digest(self):
        """A hash of the arrays."""
        found = hashlib.sha256()
        for array in (*self.train, *self.test):
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()


@dataclass(frozen=True)
class Problem:
    """A model and data, of the package or of a user.

    Args:
        function: builds the network.
        own_function: whether it is a user's.
        examples: an `Examples`, or `None` for a data set of the package.
    """

    function: Any
    own_function: bool
    examples: Examples | None

    def builder(self, options, num_classes, input_shape):
        """The function that builds the network.

        Args:
            options: the options of the run.
            num_classes: number of its outputs.
            input_shape: of one example.

        Returns:
            Function without arguments to a Keras model.

        Raises:
            ValueError: if the function lacks an option that was asked for, or needs others.
        """
        wanted = {
            "num_classes": num_classes,
            "input_shape": tuple(input_shape),
            "normalization": options.normalization,
            "ghost_batch_size": options.ghost_batch_size or options.small_batch_size,
            "l2": options.l2,
        }
        named = [p for p in inspect.signature(self.function).parameters.values() if p.kind in KINDS]
        names = {p.name for p in named}
        if self.own_function:
            self._check_options(options, named)
            if options.normalization is None:
                del wanted["normalization"]
            if not options.l2:
                del wanted["l2"]
        else:
            wanted["normalization"] = options.normalization or "ghost"
            for name in wanted.keys() - names:
                if name in {"num_classes", "input_shape"} or (name == "l2" and options.l2):
                    raise ValueError(
                        f"--model {options.model} has no option {name!r}. Change --model."
                    )
        if wanted.get("normalization") == "none":
            wanted["normalization"] = None
        arguments = {name: value for name, value in wanted.items() if name in names}
        return lambda: self.function(**arguments)

    def _check_options(self, options, named):
        names = {p.name for p in named}
        for name in OWN_OPTIONS:
            if getattr(options, name) and name not in names:
                flag = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{flag} received {getattr(options, name)!r}, but {options.model} has no "
                    f"argument {name!r}, expected none. Leave {flag} out, or give it that argument."
                )
        known = {"num_classes", "input_shape", *OWN_OPTIONS}
        needed = {p.name for p in named if p.default is p.empty} - known
        if "normalization" in names and options.normalization is None:
            needed |= {p.name for p in named if p.name == "normalization" and p.default is p.empty}
        if needed:
            raise ValueError(
                f"--model received {options.model}, which cannot be called without "
                f"{', '.join(sorted(needed))}, expected a function of some of "
                f"{', '.join(sorted(known))}. Give its other arguments defaults."
            )

    def built(self, options, build):
        """A network for checks.

        Args:
            options: the options of the run.
            build: from `builder`.

        Raises:
            ValueError: if a user's function fails, or returns no Keras model.
        """
        if not self.own_function:
            return build()
        try:
            network = build()
        except Exception as error:  # whatever a user's function raises
            raise ValueError(
                f"--model received {options.model}, which fails ({type(error).__name__}: {error}), "
                "expected a function that returns a keras.Model."
            ) from error
        if not isinstance(network, keras.Model):
            raise ValueError(
                f"--model received {options.model}, which returns {network!r}, expected a "
                "keras.Model. Have it return the model."
            )
        return network

    def check(self, options, network, split):
        """Check that a network gives logits of a user's data.

        Args:
            options: the options of the run.
            network: from `built`.
            split: the `Split` to train on.

        Raises:
            ValueError: if it does not.
        """
        if not self.own_function and self.examples is None:
            return
        x = split.x_train[:8]
        try:
            outputs = np.asarray(call_model(network, x, training=False))
        except Exception as error:  # whatever a user's model raises
            raise ValueError(
                f"--model received {options.model}, which cannot be called on examples of shape "
                f"{x.shape[1:]} ({type(error).__name__}: {error}), expected a model of that input."
            ) from error
        if outputs.ndim != 2 or outputs.shape[1] < split.num_classes:
            raise ValueError(
                f"--model received {options.model}, whose outputs have the shape {outputs.shape} "
                f"for {len(x)} examples, expected ({len(x)}, {split.num_classes}): one logit for "
                "each class. Change its last layer."
            )
        if np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
            raise ValueError(
                f"--model received {options.model}, whose outputs add up to 1, expected logits. "
                "Drop the softmax of its last layer."
            )

    def identity(self, network):
        """Hashes that identify a user's function and data in a record.

        Args:
            network: from `built`.

        Returns:
            Dictionary, empty for a model and data of the package.
        """
        found = {}
        if self.own_function:
            found["model_sha256"] = _model_digest(self.function, network)
        if self.examples is not None:
            found["data_sha256"] = self.examples.digest
        return found


def _model_digest(function, network):
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # typed in at a prompt, or not a plain function
        source = ""
    shapes = [tuple(variable.shape) for variable in network.weights]
    return hashlib.sha256(f"{source}{shapes}".encode()).hexdigest()


def named(options):
    """The problem that the options name.

    Args:
        options: the options of the run.

    Returns:
        A `Problem`.

    Raises:
        ValueError: if there is no such model or data set.
        OSError: if the data cannot be read.
    """
    own = ":" in options.model
    try:
        function = imported(options.model) if own else models.get(options.model)
    except ValueError as error:
        if own:
            raise
        near = nearest(options.model, models.names())
        raise ValueError(f"{error}.{near} Change --model.") from None
    return Problem(function, own, _examples(options))


def _examples(options):
    if options.dataset.endswith(".npz"):
        return labelled(*files.read_npz(options.dataset), options.dataset)
    if options.dataset in data.names():
        return None
    if ":" in options.dataset or os.sep in options.dataset:
        raise ValueError(
            f"--dataset received {options.dataset!r}, expected one of {', '.join(data.names())}, "
            "a file FILE.npz, or the name of a data set in --data-dir. Change --dataset."
        )
    return labelled(*files.read_prepared(options.dataset, options.data_dir), options.dataset)


def imported(name):
    """A user's function, from the current directory or what is installed.

    Args:
        name: "package.module:function".

    Returns:
        The function.

    Raises:
        ValueError: if there is no such module or function, or the module fails.
    """
    expected = "expected package.module:function, a function that returns a Keras model"
    if not re.fullmatch(r"[\w.]+:[\w.]+", name):
        raise ValueError(f"--model received {name!r}, {expected}. Change --model.")
    module_name, _, path = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        found = importlib.import_module(module_name)
    except Exception as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and (module_name == missing or module_name.startswith(f"{missing}.")):
            reason = f"no module {missing!r} is in the current directory or installed"
        else:
            reason = f"the module cannot be imported ({type(error).__name__}: {error})"
        raise ValueError(f"--model received {name!r}, but {reason}; {expected}.") from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(
            f"--model received {name!r}, but {module_name} has no function {path!r}; {expected}."
        )
    return found


def labelled(train, test, name):
    """Check arrays, and hold out a fifth of the training set where there is no test set.

    Args:
        train: tuple `(x, y)`.
        test: tuple `(x, y)`, or `None`.
        name: of the data set, for errors.

    Returns:
        An `Examples`.

    Raises:
        ValueError: if they are no numbers with an integer label for each example.
    """
    train = _pair(train, f"the training set of {name}")
    if test is None:
        train, test = data.split(*train, files.HELD_OUT)
    else:
        test = _pair(test, f"the test set of {name}")
    if train[0].shape[1:] != test[0].shape[1:]:
        raise ValueError(
            f"{name} has training examples of shape {train[0].shape[1:]} and test examples of "
            f"shape {test[0].shape[1:]}, expected the same."
        )
    return Examples(train, test, int(max(train[1].max(), test[1].max())) + 1)


def _pair(pair, what):
    x, y = (np.asarray(array) for array in pair)
    if y.ndim == 2 and y.shape[1] == 1:  # as keras.datasets has them
        y = y[:, 0]
    if x.dtype.kind not in "biuf" or x.ndim < 2:
        raise ValueError(
            f"{what} has examples of type {x.dtype} and shape {x.shape}, expected an array of "
            "numbers with the examples first."
        )
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise ValueError(
            f"{what} has labels of type {y.dtype} and shape {y.shape}, expected integers of shape "
            "(N,): the number of each example's class."
        )
    try:
        data.check_arrays(x, y)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    if y.min() < 0:
        raise ValueError(f"{what} has the label {y.min()}, expected classes counted from 0.")
    return x, y.astype("int64")


def builder(options, num_classes, input_shape):
    """The function that builds the network.

    Args:
        options: the options of the run.
        num_classes: number of its outputs.
        input_shape: of one image.

    Returns:
        Function without arguments to a Keras model.

    Raises:
        ValueError: if the model is unknown, or lacks an option that was asked for.
    """
    problem = Problem(models.get(options.model), False, None)
    return problem.builder(options, num_classes, input_shape)
