"""Time of a step against the number of workers, and a model of it for more workers than two.

    python benchmarks/multi_worker.py [--model lenet] [--batch-size 512] [--rounds 9] [--steps 5]

Each worker has one core. A cluster of one worker and one of two live all the time and take turns,
so that whatever else the machine does slows both; a figure is a median over the rounds. The model
adds to the measured time of one worker what a ring all-reduce takes on a network:

    t(N) = t(1) + 2 (N - 1) / N · bytes / bandwidth + operations · 2 (N - 1) · latency

with the bytes of the gradient, and the collective operations of a step, read off its graph.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CASES = ("plain", "split", "per_example", "all-reduce")
NETWORKS = {"10 Gbit/s, 50 µs": (10e9 / 8, 50e-6), "100 Gbit/s, 10 µs": (100e9 / 8, 10e-6)}


def collectives(graph):
    """Bytes of each collective operation in a graph and the functions that it calls."""
    graphs = [graph, *(function.graph for function in graph._functions.values())]
    return [
        op.inputs[0].shape.num_elements() * op.inputs[0].dtype.size
        for found in graphs
        for op in found.get_operations()
        if op.type.startswith("Collective")
    ]


def make_steps(strategy, model_name, batch_size):
    """The cases as functions without arguments, and the collective operations of each."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_noisylb as nlb

    rng = np.random.default_rng(0)
    shape = (28, 28, 1) if model_name == "lenet" else (32, 32, 3)
    x = tf.constant(rng.standard_normal((batch_size, *shape)), "float32")
    y = tf.constant(rng.integers(0, 10, batch_size))
    steps, found = {}, {}

    def add(name, step):
        graph = tf.function(lambda: strategy.run(step)).get_concrete_function()
        steps[name], found[name] = graph, collectives(graph.graph)
        return step

    for name in CASES[:-1]:
        with strategy.scope():
            network = nlb.models.get(model_name)(
                num_classes=10, input_shape=shape, ghost_batch_size=64
            )
            model = nlb.NoisyModel(network)
            optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
            if name != "plain":
                noise = nlb.DiagonalFisher(64, estimator=name)
                optimizer = nlb.NoisyOptimizer(optimizer, noise, seed=0)
            model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        data = tf.data.Dataset.from_tensors((x, y)).repeat()
        global_size = batch_size * strategy.num_replicas_in_sync
        data = data.unbatch().batch(global_size, drop_remainder=True)
        model.fit(data, steps_per_epoch=1, verbose=0)
        add(name, lambda model=model: model.train_step((x, y)))
    gradients = [tf.zeros(v.shape) for v in model.trainable_variables]

    def reduce_gradients():
        return tf.distribute.get_replica_context().all_reduce("SUM", gradients)

    add("all-reduce", reduce_gradients)
    return steps, found


def work(options):
    """One worker: it runs a case whenever it is told a number of steps, and says the seconds."""
    signal.alarm(3600)  # whatever happens to the parent, nothing is left behind
    os.sched_setaffinity(0, {options.core})
    import tensorflow as tf

    import keras_noisylb as nlb

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    strategy = nlb.multi_worker_strategy()
    steps, found = make_steps(strategy, options.model, options.batch_size)
    with options.answers.open("w") as answers:
        print(json.dumps(found), file=answers, flush=True)
        for line in sys.stdin:
            name, number = json.loads(line)
            start = time.perf_counter()
            for _ in range(number):
                results = steps[name]()
            tf.nest.map_structure(
                lambda value: value.numpy(), strategy.experimental_local_results(results)[0]
            )
            print(json.dumps((time.perf_counter() - start) / number), file=answers, flush=True)


@contextlib.contextmanager
def cluster(number, options, folder):
    """A function `(case, steps) -> seconds of a step` that all workers run together."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for reserved in sockets:  # the workers share their ports
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("localhost", 0))
        addresses = [f"localhost:{held.getsockname()[1]}" for held in sockets]
        workers = []
        for index in range(number):
            pipe = folder / f"{number}-{index}"
            os.mkfifo(pipe)
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            command = [
                sys.executable, __file__, "--core", str(index), "--answers", str(pipe),
                "--model", options.model, "--batch-size", str(options.batch_size),
            ]  # fmt: skip
            worker = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                text=True,
                env=os.environ | {"TF_CONFIG": json.dumps(task), "TF_GRPC_REUSE_PORT": "1"},
            )
            stack.callback(worker.kill)
            workers.append((worker, pipe))
        answers = [stack.enter_context(pipe.open()) for _, pipe in workers]
        *_, found = (json.loads(answer.readline()) for answer in answers)

        def run(name, steps):
            for worker, _ in workers:
                print(json.dumps([name, steps]), file=worker.stdin, flush=True)
            return max(json.loads(answer.readline()) for answer in answers)

        yield run, found
        for worker, _ in workers:
            worker.stdin.close()
        for worker, _ in workers:
            worker.wait()


def predicted(alone, sizes, workers, bandwidth, latency):
    """Seconds of a step by the model.

    Args:
        alone: seconds of a step of one worker.
        sizes: bytes of each collective operation.
        workers: N.
        bandwidth: bytes in a second.
        latency: seconds of a message.
    """
    moved = 2 * (workers - 1) / workers * sum(sizes) / bandwidth
    return alone + moved + len(sizes) * 2 * (workers - 1) * latency


def main(options):
    """Measure, and print what was measured and the model on paper."""
    with (
        tempfile.TemporaryDirectory() as folder,
        cluster(1, options, pathlib.Path(folder)) as (one, _),
        cluster(2, options, pathlib.Path(folder)) as (two, sizes),
    ):
        times = {(case, number): [] for case in CASES for number in (1, 2)}
        for round_number in range(options.rounds + 1):
            for case in CASES:
                for number, run in ((1, one), (2, two)):
                    seconds = run(case, options.steps)
                    if round_number:  # the first one warms up
                        times[case, number].append(seconds)
    median = {key: statistics.median(values) for key, values in times.items()}
    print(f"{options.model}, {options.batch_size} examples for each worker, milliseconds of a step")
    print(f"{'':12}{'1 worker':>10}{'2 workers':>11}{'ratio':>7}  collective operations: bytes")
    for case in CASES:
        alone, both = median[case, 1], median[case, 2]
        of_case = f"{len(sizes[case])}: {sum(sizes[case])}"
        print(f"{case:12}{alone * 1e3:10.1f}{both * 1e3:11.1f}{both / alone:7.2f}  {of_case}")
    print("\nOn paper: milliseconds of a step, each worker as fast as the one that was measured")
    counts = (1, 2, 8, 64, 512)
    print(f"{'':32}" + "".join(f"{n:>10}" for n in counts))
    for network, (bandwidth, latency) in NETWORKS.items():
        for case in CASES[:-1]:
            row = [predicted(median[case, 1], sizes[case], n, bandwidth, latency) for n in counts]
            print(f"{network:20}{case:12}" + "".join(f"{t * 1e3:10.1f}" for t in row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--batch-size", type=int, default=512, help="of each worker")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=5, help="in each round")
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--answers", type=pathlib.Path, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.answers:
        work(parsed)
    else:
        main(parsed)
