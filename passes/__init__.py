"""The graph rewrites: one pass a file. Installed as `peftc.passes`."""

if __name__ != "peftc.passes":
    # A second copy of every class under another name would make isinstance fail silently.
    raise ImportError("import peftc.passes, not the folder `passes`")
