"""Training with noise: the model, the step, and gradients for loops of one's own."""
