"""What the workers of a cluster tell each other."""

import functools
import json

import numpy as np
import tensorflow as tf

from keras_noisylb.training.workers import addresses, several_workers


def of_all(strategy, own):
    """The messages of all workers; all workers must call this together.

    Args:
        strategy: a strategy with several workers.
        own: bytes that this worker sends.

    Returns:
        List of bytes, in the order of the workers.
    """
    resolver = strategy.cluster_resolver
    workers = list(addresses(resolver.cluster_spec()))
    index = workers.index((resolver.task_type, resolver.task_id))
    numbers = np.frombuffer(own + bytes(-len(own) % 8), "int64")
    message = np.concatenate([[index, len(own)], numbers])
    rest, found = gathering(strategy)(message).numpy(), {}
    while rest.size:
        worker, length = rest[:2].tolist()
        end = 2 + -(-length // 8)
        found[worker] = rest[2:end].tobytes()[:length]
        rest = rest[end:]
    return [found[worker] for worker in range(len(workers))]


@functools.cache
def gathering(strategy):
    """A function from a vector of integers to those of all devices, one after the other.

    Traced once: TensorFlow warns of `strategy.gather`, which makes a new graph in every call.

    Args:
        strategy: a strategy with several workers.
    """

    def of_device(vector):
        # TensorFlow gathers what lies on the device, which an argument does not.
        return tf.distribute.get_replica_context().all_gather(tf.identity(vector), axis=0)

    @tf.function(input_signature=[tf.TensorSpec([None], "int64")])
    def gather(vector):
        gathered = strategy.run(of_device, args=(vector,))
        return strategy.experimental_local_results(gathered)[0]

    return gather


def of_chief(strategy, value):
    """The chief's value; all workers must call this together.

    Args:
        strategy: any strategy.
        value: what JSON can hold.
    """
    if not several_workers(strategy):
        return value
    return json.loads(of_all(strategy, json.dumps(value).encode())[0])
