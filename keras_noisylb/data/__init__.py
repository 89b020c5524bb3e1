"""The data sets of the experiments, standardised, with the paper's augmentation."""

from keras_noisylb.data.loading import DatasetInfo, check_arrays, info, load, names, split
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
