"""Keel: policies."""
