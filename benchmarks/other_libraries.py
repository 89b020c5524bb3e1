"""Run the PyTorch code of docs/migration.md and compare its results with ours.

`pip install torch opacus backpack-for-pytorch && python benchmarks/other_libraries.py`
"""

import importlib.metadata
import pathlib
import re
import sys

import keras
import numpy as np

sys.modules["triton"] = None  # triton crashes together with TensorFlow; PyTorch does not need it
import torch
from backpack.hessianfree.hvp import hessian_vector_product

import keras_noisylb as nlb

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "migration.md"


def printed(title):
    """The code blocks of the page whose title begins with `title`."""
    blocks = re.findall(r'^```python title="([^"]+)"\n(.*?)^```', PAGE.read_text(), re.M | re.S)
    return [code for name, code in blocks if name.startswith(title)]


def translated(network):
    """A PyTorch copy of a Keras network of dense layers and ReLU, with the same weights."""
    layers = []
    for layer in network.layers:
        kernel, bias = layer.get_weights()
        linear = torch.nn.Linear(*kernel.shape)
        linear.weight.data, linear.bias.data = torch.tensor(kernel.T), torch.tensor(bias)
        layers += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


def difference(theirs, ours):
    """The largest difference over all tensors, relative to the largest entry of the tensor."""
    worst = 0.0
    for number, (found, expected) in enumerate(zip(theirs, ours, strict=True)):
        found, expected = found.detach().numpy(), np.asarray(expected)
        if number % 2 == 0:  # a kernel, which PyTorch stores transposed
            found = found.swapaxes(-1, -2)
        worst = max(worst, np.abs(found - expected).max() / np.abs(expected).max())
    return worst


def main():
    """Print the versions and the differences."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 8)).astype("float32")
    y = rng.integers(0, 3, size=256)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network = keras.Sequential([
        keras.Input((8,)),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.Dense(3),
    ])
    gradients = nlb.gradients.per_example_gradients(network, loss, x, y)
    fisher = nlb.gradients.diagonal_fisher(network, loss, x, y)
    ones = [np.ones(v.shape) for v in network.trainable_variables]
    product = nlb.diagnostics.hessian_vector_product(network, loss, x, y, ones)

    for name in ("torch", "opacus", "backpack-for-pytorch"):
        print(name, importlib.metadata.version(name))
    x, y = torch.tensor(x), torch.tensor(y)
    private, single = printed("Opacus")
    (backpack,) = printed("BackPACK")

    model = translated(network)
    data = torch.utils.data.TensorDataset(x, y)
    names = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.05),
        "data_loader": torch.utils.data.DataLoader(data, batch_size=64),
    }
    exec(private, names)
    for inputs, labels in names["data_loader"]:
        names["optimizer"].zero_grad()
        torch.nn.functional.cross_entropy(names["model"](inputs), labels).backward()
        names["optimizer"].step()
    print("Opacus, make_private: trained")

    criterion = torch.nn.CrossEntropyLoss()
    names = {"model": translated(network), "criterion": criterion, "x": x, "y": y}
    exec(single, names)
    print(f"Opacus, per-example gradients: {difference(names['per_example'], gradients):.1e}")

    names = {"torch": torch, "model": translated(network), "x": x, "y": y}
    exec(backpack, names)
    print(f"BackPACK, per-example gradients: {difference(names['per_example'], gradients):.1e}")
    print(f"BackPACK, diagonal Fisher: {difference(names['fisher'], fisher):.1e}")

    model = translated(network)
    parameters = list(model.parameters())
    found = hessian_vector_product(
        criterion(model(x), y), parameters, [torch.ones_like(p) for p in parameters]
    )
    print(f"BackPACK, Hessian product: {difference(found, product):.1e}")


if __name__ == "__main__":
    main()
