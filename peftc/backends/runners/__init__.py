"""Scripts that run an exported file with its own runtime; they import nothing of this package."""
