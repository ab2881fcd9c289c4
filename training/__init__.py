"""Keel: training."""
