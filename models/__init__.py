"""Ordinary Keras models."""
