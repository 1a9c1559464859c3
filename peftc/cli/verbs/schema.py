"""`peftc schema`: the JSON schema of specs, for editors."""

from __future__ import annotations

import json as data
import sys

from peftc.cli.options import Json

ORDER = 11


def schema(json: Json = False) -> None:
    """Print the JSON schema of specs: every key, described. Editors complete from it."""
    from peftc.spec.json_schema import json_schema

    sys.stdout.write(data.dumps(json_schema(), indent=1) + "\n")
