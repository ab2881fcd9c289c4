"""Measuring checkpoints: scorers that run what is shipped, metrics with intervals, reports."""
