"""`make bench-training`: training beside TRL, rollouts beside vLLM and transformers, in one run."""
