"""The command line of keras_noisylb, and in `protocol` what it shares with the experiments."""
