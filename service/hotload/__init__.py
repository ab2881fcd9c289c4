"""Checkpoints that take each other's place while requests are answered."""
