"""Keel: service."""
