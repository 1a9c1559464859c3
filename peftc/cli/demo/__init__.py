"""`peftc demo`: the whole job on a real encoder and a small task, offline after the first run."""
