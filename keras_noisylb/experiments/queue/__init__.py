"""Runs in processes of their own: planned, queued, worked off and estimated."""
