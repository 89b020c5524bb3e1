"""`noisylb` as one process of the tests: python tests/train_worker.py BEHAVIOUR ARGUMENTS...

BEHAVIOUR is "whole", or "killed" for a process that dies in the second epoch of LB + diagonal.
"""

import sys

from clusters import leave_nothing_behind

leave_nothing_behind()
behaviour = sys.argv.pop(1)

import keras
import tensorflow as tf

from keras_noisylb.experiments import journal
from noisylb.main import main

tf.config.threading.set_intra_op_parallelism_threads(1)
keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")
journal.PAUSE = 0
if behaviour == "killed":
    from killed_command import finish_batch_and_die

    journal.Journal.on_train_batch_end = finish_batch_and_die
main()
