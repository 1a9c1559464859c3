"""Weight-decomposed low-rank updates."""
