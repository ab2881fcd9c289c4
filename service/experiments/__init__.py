"""A/B tests and gradual deployment: which arm answers, what came of it, and what follows from that."""
