"""The verbs: each module has a function of its own name, or a typer app called `app`."""
