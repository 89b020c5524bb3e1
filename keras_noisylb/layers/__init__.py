"""Ghost batch normalisation, and its use in models with batch normalisation."""

from keras_noisylb.layers.ghost_batch_norm import GhostBatchNormalization
from keras_noisylb.layers.replace import replace_batch_norm

__all__ = ["GhostBatchNormalization", "replace_batch_norm"]
