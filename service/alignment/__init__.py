"""Alignment while the model answers."""
