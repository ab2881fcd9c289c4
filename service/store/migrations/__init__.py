"""Alembic's migrations: one linear chain in `versions`, each file named by its number."""
