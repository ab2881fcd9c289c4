"""Critique and revision measured in the demo shop: before and after, and what it costs."""
