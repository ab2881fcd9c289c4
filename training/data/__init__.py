"""Data: formats, cleaning, rendering through the chat template, packing."""
