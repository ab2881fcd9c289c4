"""Training methods: one readable file each."""
