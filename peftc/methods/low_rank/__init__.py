"""Low-rank updates."""
