"""The journal's schema and its changes, applied by Alembic when a journal is opened."""
