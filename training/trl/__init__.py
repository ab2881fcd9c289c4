"""What Keel adds to the trainers of transformers and TRL: exact resume, reports, limits, safety figures."""

from __future__ import annotations

from datasets.utils import disable_progress_bars
from huggingface_hub import constants

# TRL reports every trainer that is made to its authors; training here talks to nobody.
constants.HF_HUB_DISABLE_TELEMETRY = True

# Each of a trainer's passes over a data set would draw a bar of its own beside the run's.
disable_progress_bars()
