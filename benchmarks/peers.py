"""Time and memory of per-example gradient squares: ours, BackPACK, Opacus and torch.func.

    pip install torch opacus backpack-for-pytorch
    python benchmarks/peers.py [--rounds 9] [--networks lenet,convolutions] [--output FILE.json]

Every library computes, for the same network and batch on the CPU, the gradient of the mean loss and
the mean over examples of the squared per-example gradients (the diagonal of the empirical Fisher).
Each library runs in a separate process. The processes alternate, so that other load of the machine
slows all of them equally. Times are medians; ratios are ratios of medians in one process.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

# (batch size, image shape, layers): a convolution is (filters, kernel size, stride, padding).
LENET = (512, (28, 28, 1), [(20, 5, 1, 0), "pool", (50, 5, 1, 0), "pool", 500])
RESNET44 = [  # without shortcuts
    *[(16, 3, 1, 1)] * 15,
    *[(32, 3, 2, 1), *[(32, 3, 1, 1)] * 13],
    *[(64, 3, 2, 1), *[(64, 3, 1, 1)] * 13],
]
CONVOLUTIONS = (128, (32, 32, 3), [*RESNET44, "mean"])
NETWORKS = {"lenet": LENET, "convolutions": CONVOLUTIONS}
LIBRARIES = ("keras_noisylb", "backpack", "opacus", "torch.func")
PACKAGES = {
    "keras_noisylb": ("keras-noisylb", "tensorflow"), "backpack": ("backpack-for-pytorch", "torch"),
    "opacus": ("opacus", "torch"), "torch.func": ("torch",),
}  # fmt: skip


def data(network):
    """Images, examples first and channels last, and labels."""
    size, shape, _ = NETWORKS[network]
    rng = np.random.default_rng(0)
    return rng.normal(size=(size, *shape)).astype("float32"), rng.integers(0, 10, size)


def ours(network):
    """The plain step and the step with squares in Keras: functions without arguments."""
    import keras
    import tensorflow as tf

    from keras_noisylb import gradients
    from keras_noisylb.gradients import engines
    from keras_noisylb.gradients.accumulate import compute
    from keras_noisylb.gradients.batch import Batch

    _, shape, stack = NETWORKS[network]
    x, y = map(tf.constant, data(network))
    layers = [keras.Input(shape)]
    for layer in stack:
        if layer == "pool":
            layers.append(keras.layers.MaxPooling2D())
        elif layer == "mean":
            layers.append(keras.layers.GlobalAveragePooling2D())
        elif isinstance(layer, int):
            layers += [keras.layers.Flatten(), keras.layers.Dense(layer, activation="relu")]
        else:
            filters, size, stride, padding = layer
            pad = "same" if padding else "valid"
            conv = keras.layers.Conv2D(filters, size, stride, pad, activation="relu")
            layers.append(conv)
    model = keras.Sequential([*layers, keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def plain():
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        return tape.gradient(value, [v.value for v in model.trainable_variables])

    @tf.function
    def squares():
        target = gradients.objective(model, loss)
        statistic = engines.squares(model, x)
        computed = compute(target, Batch(x, y), statistic, draws=None)
        return computed.gradients, computed.statistic

    return lambda: plain()[-1].numpy(), lambda: squares()[1][-1].numpy()


def torch_network(network):
    """The same network in PyTorch, its loss and its data."""
    import torch
    from torch import nn

    stack = NETWORKS[network][2]
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    x, y = data(network)
    x, y = torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(y)
    layers, probe = [], x[:1]

    def add(layer):
        nonlocal probe
        layers.append(layer)
        probe = layer(probe)

    for layer in stack:
        if layer == "pool":
            add(nn.MaxPool2d(2))
        elif layer == "mean":
            add(nn.AvgPool2d(probe.shape[-1]))
            add(nn.Flatten())
        elif isinstance(layer, int):
            add(nn.Flatten())
            add(nn.Linear(probe.shape[1], layer))
            add(nn.ReLU())
        else:
            filters, size, stride, padding = layer
            add(nn.Conv2d(probe.shape[1], filters, size, stride, padding))
            add(nn.ReLU())
    add(nn.Linear(probe.shape[1], 10))
    return nn.Sequential(*layers), nn.CrossEntropyLoss(), x, y


def plain_torch(network):
    """The plain step in PyTorch."""
    model, loss, x, y = torch_network(network)

    def plain():
        model.zero_grad()
        loss(model(x), y).backward()

    return plain


def backpack(network):
    """The plain step, and the step with squares by BackPACK's `SumGradSquared`."""
    import backpack as library
    from backpack.extensions import SumGradSquared

    model, loss, x, y = torch_network(network)
    model, loss = library.extend(model), library.extend(loss)

    def squares():
        model.zero_grad()
        with library.backpack(SumGradSquared()):
            loss(model(x), y).backward()
        return [p.sum_grad_squared * len(x) for p in model.parameters()]

    return plain_torch(network), squares


def opacus(network):
    """The plain step, and the step with squares by Opacus' `GradSampleModule`."""
    from opacus.grad_sample import GradSampleModule

    model, loss, x, y = torch_network(network)
    model = GradSampleModule(model, loss_reduction="mean")

    def squares():
        model.zero_grad()
        loss(model(x), y).backward()
        found = [(p.grad_sample**2).mean(0) for p in model.parameters()]
        for p in model.parameters():
            p.grad_sample = None
        return found

    return plain_torch(network), squares


def torch_func(network):
    """The plain step, and the step with squares by `vmap` of `grad`."""
    import torch
    from torch.func import functional_call, grad, vmap

    model, loss, x, y = torch_network(network)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def of_one(parameters, image, label):
        return loss(functional_call(model, parameters, (image[None],)), label[None])

    per_example = vmap(grad(of_one), in_dims=(None, 0, 0))

    def squares():
        with torch.no_grad():
            found = per_example(parameters, x, y)
        return [(g.mean(0), (g**2).mean(0)) for g in found.values()]

    return plain_torch(network), squares


STEPS = {"keras_noisylb": ours, "backpack": backpack, "opacus": opacus, "torch.func": torch_func}


def serve(library, network):
    """Time one step for each line that is read, "plain" or "squares", and print the seconds."""
    steps = dict(zip(("plain", "squares"), STEPS[library](network), strict=True))
    for line in sys.stdin:
        if line.strip() == "memory":
            kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(kib / 2**20, flush=True)
            continue
        began = time.perf_counter()
        steps[line.strip()]()
        print(time.perf_counter() - began, flush=True)


def ask(process, word):
    """Have a process do something, and read its number."""
    process.stdin.write(word + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        sys.exit(f"{process.args}: ended without an answer. Run it alone to see why.")
    return float(line)


def measure(network, rounds):
    """The medians of every library for one network."""
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    processes = {
        library: subprocess.Popen(
            [sys.executable, __file__, "--serve", library, network],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=quiet,
        )
        for library in LIBRARIES
    }  # fmt: skip
    seconds = {library: {"plain": [], "squares": []} for library in LIBRARIES}
    rows = {}
    for library, process in processes.items():
        ask(process, "plain")  # builds graphs and caches
        before = ask(process, "memory")
        ask(process, "squares")
        rows[library] = {"extra_gib": ask(process, "memory") - before}
    for _ in range(rounds):
        for library, process in processes.items():
            for word in seconds[library]:
                seconds[library][word].append(ask(process, word))
    for library, process in processes.items():
        process.stdin.close()
        process.wait()
        plain, squares = (statistics.median(seconds[library][w]) for w in ("plain", "squares"))
        rows[library] |= {"plain": plain, "squares": squares, "ratio": squares / plain}
    return rows


def main():
    """Print a table in Markdown, and write the numbers if a file is given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--output")
    parser.add_argument("--serve", nargs=2)
    options = parser.parse_args()
    if options.serve:
        return serve(*options.serve)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            package: importlib.metadata.version(package)
            for package in sorted({p for packages in PACKAGES.values() for p in packages})
        },
        "networks": {},
    }
    for network in options.networks.split(","):
        found = result["networks"][network] = measure(network, options.rounds)
        size, _, stack = NETWORKS[network]
        print(f"\n{network}, {len(stack)} layers before the last, batch {size}\n")
        print("| library | plain step, ms | with squares, ms | ratio | extra memory, GiB |")
        print("|---|---|---|---|---|")
        for library, row in found.items():
            times = f"{1e3 * row['plain']:.0f} | {1e3 * row['squares']:.0f} | {row['ratio']:.2f}"
            print(f"| {library} | {times} | {row['extra_gib']:.2f} |")
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
