"""The command `batch-size`."""

import dataclasses
from typing import Annotated

import typer

from noisylb.app import app, fail, path, work
from noisylb.protocol.options import Options

FIELDS = {field.name: field for field in dataclasses.fields(Options)}


def same(name):
    """An option that `compare` also has.

    Args:
        name: of the field of `Options`.
    """
    field = FIELDS[name]
    read = path if name in {"dataset", "data_dir"} else None
    return Annotated[field.type, typer.Option(help=field.metadata["help"], callback=read)]


@app.command(
    "batch-size",
    help="Measure up to which size a larger batch saves updates, for a model and its data, and "
    "suggest a learning rate and noise. Trains for a short time and writes nothing.",
)
def batch_size(
    batch_size: Annotated[int, typer.Option(help="Batch size in use.")] = 50,
    learning_rate: Annotated[float, typer.Option(help="Learning rate in use, its peak.")] = 0.02,
    model: same("model") = "lenet",
    dataset: same("dataset") = "fashion_mnist_small",
    data_dir: same("data_dir") = None,
    optimizer: same("optimizer") = "sgd",
    momentum: same("momentum") = 0.9,
    global_clipnorm: same("global_clipnorm") = None,
    weight_decay: same("weight_decay") = 0.0,
    normalization: same("normalization") = None,
    ghost_batch_size: Annotated[
        int | None, typer.Option(help="Ghost batch size (the batch size).")
    ] = None,
    l2: same("l2") = 0.0,
    train_size: same("train_size") = None,
    pool: same("pool") = 1,
    updates: Annotated[int, typer.Option(help="Updates of the short training.")] = 200,
    num_batches: Annotated[int, typer.Option(help="Batches of each measurement.")] = 64,
    highest_rate: Annotated[
        str | None,
        typer.Option(
            help="Highest stable learning rate of large batches: a number, or `measure` to measure "
            "it by short runs."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Coverage of the interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of weights and order.")] = 0,
    quiet: same("quiet") = False,
):
    """Measure up to which size a larger batch saves updates.

    Args:
        batch_size: in use.
        learning_rate: in use.
        model: name, or a function.
        dataset: name, or a file.
        data_dir: folder of the prepared data sets.
        optimizer: name.
        momentum: of SGD.
        global_clipnorm: norm of clipping.
        weight_decay: of AdamW.
        normalization: of the model.
        ghost_batch_size: of the model.
        l2: of the model.
        train_size: number of examples.
        pool: size of tiles.
        updates: number of updates.
        num_batches: number of batches.
        highest_rate: number, or "measure".
        confidence: of the interval.
        seed: of weights and order.
        quiet: whether there are no progress bars.
    """
    for flag, number in (("--batch-size", batch_size), ("--learning-rate", learning_rate)):
        if not 0 < number < float("inf"):
            fail(f"{flag} received {number!r}, expected a positive number. Change {flag}.")
    if not 0 <= seed < 2**32:
        fail(f"--seed received {seed}, expected an integer from 0 to 2^32 - 1. Change --seed.")
    try:
        if highest_rate not in {None, "measure"}:
            highest_rate = float(highest_rate)
    except ValueError:
        fail(
            f"--highest-rate received {highest_rate!r}, expected a number or measure. Change "
            "--highest-rate."
        )
    try:
        options = Options(
            model=model, dataset=dataset, data_dir=data_dir, optimizer=optimizer,
            small_batch_size=batch_size, large_batch_size=batch_size + 1,
            learning_rate=str(learning_rate), momentum=momentum, weight_decay=weight_decay,
            global_clipnorm=global_clipnorm, normalization=normalization,
            ghost_batch_size=ghost_batch_size, l2=l2, train_size=train_size, pool=pool,
            quiet=quiet,
        )  # fmt: skip
    except ValueError as error:
        fail(error)
    arguments = {
        "updates": updates, "num_batches": num_batches, "highest_rate": highest_rate,
        "confidence": confidence, "seed": seed,
    }  # fmt: skip
    work("batch_size", lambda module: module.show(options, **arguments), "the results")
    data = f"--model {model} --dataset {dataset}"
    typer.echo(
        "Nothing was written. Next: try the advice with noisylb compare --small-batch-size "
        f"{batch_size} --large-batch-size LARGER {data}"
    )
