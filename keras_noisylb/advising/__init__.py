"""Advice on batch size, learning rate and noise for a model and its data."""
