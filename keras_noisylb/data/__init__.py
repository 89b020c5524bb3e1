"""Standardised data sets of the experiments, and the paper's augmentation."""

from keras_noisylb.data.arrays import check_arrays, split
from keras_noisylb.data.catalogue import DatasetInfo, info, names
from keras_noisylb.data.loading import load
from keras_noisylb.data.pipeline import batches, random_crop_flip

__all__ = [
    "DatasetInfo",
    "batches",
    "check_arrays",
    "info",
    "load",
    "names",
    "random_crop_flip",
    "split",
]
