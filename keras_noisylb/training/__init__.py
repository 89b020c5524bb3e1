"""Training with noise: the model, its step, and gradients for custom loops."""
