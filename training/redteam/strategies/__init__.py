"""The strategies that come with Keel; importing this package registers them."""

from training.redteam.strategies import context, disguise, indirect, wording

__all__ = ["context", "disguise", "indirect", "wording"]
