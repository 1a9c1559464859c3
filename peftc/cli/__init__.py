"""The command line: one file a verb, found by walking `peftc.cli.verbs`."""
