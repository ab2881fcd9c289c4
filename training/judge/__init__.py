"""AI judges: pairwise verdicts, critiques and revisions, from any OpenAI-compatible model."""
