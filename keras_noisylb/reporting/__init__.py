"""What a noise costs on a model, before training."""
