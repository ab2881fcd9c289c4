"""What critique and revision change: see `loadtests.bench.revision.__main__`."""
