"""Loads and benchmarks. They reach the gateway over HTTP only, as its users do."""
