"""The shipped specs, as package data. Installed as `peftc.specs`."""
