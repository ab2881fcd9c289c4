"""Keel: guardrails."""
