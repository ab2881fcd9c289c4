"""Reinforcement learning on replies: rollouts, advantages, KL to a reference, the trust region."""
