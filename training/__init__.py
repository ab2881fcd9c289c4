"""Keel's training side: demonstrations and preferences in, verified checkpoints out.

`service` never imports this package, nor this package `service`; they meet in the checkpoint manifest
(`policies.manifest`).
"""
