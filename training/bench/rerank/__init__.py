"""Reranking measured: every method at every n, through the real gateway, judged by gold."""
