"""Keel: guardrails.checks."""
