"""The random state of a model, which Keras does not save with its weights."""


def seed_states(model):
    """The states of random layers such as Dropout: what a resumed run needs beside the weights.

    Args:
        model: a Keras model.

    Returns:
        List of variables, in the order of the layers.
    """
    weights = {id(weight) for weight in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]
