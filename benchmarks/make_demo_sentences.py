"""Write the demo's sentences: has it happened, or is it still to come?

Both classes share their people, deeds and things; train and eval share no sentence frame, and no
person. Frames without time words force a reader to look at the verb. Run it from the project's
root; the files it writes are committed.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

PEOPLE = {
    "train": [
        "the baker", "our neighbour", "Maria", "the new captain", "a team of divers", "my uncle",
        "the school choir", "Dr Okafor", "the twins", "the city council", "an old friend",
        "the night nurse", "the gardener", "two students",
    ],
    "eval": ["the pilot", "Jonas", "the village band", "her cousin", "the museum", "Ms Tanaka"],
}  # fmt: skip
# (plain form, past form, participle, things it can be done to)
DEEDS = [
    ("repair", "repaired", "repaired", ["the old bridge", "a clock", "the boat"]),
    ("paint", "painted", "painted", ["the kitchen", "a portrait", "the fence"]),
    ("sell", "sold", "sold", ["the house", "her bicycle", "the last tickets"]),
    ("write", "wrote", "written", ["a long letter", "the report", "a song"]),
    ("choose", "chose", "chosen", ["a new colour", "the winner", "the menu"]),
    ("build", "built", "built", ["a small tower", "the stage", "a stone wall"]),
    ("find", "found", "found", ["a cheaper supplier", "the missing key", "a solution"]),
    ("open", "opened", "opened", ["a second shop", "the archive", "the gates"]),
    ("grow", "grew", "grown", ["tomatoes", "a hedge", "rare orchids"]),
    ("teach", "taught", "taught", ["the beginners", "a class on maps", "the puppies"]),
    ("catch", "caught", "caught", ["the early train", "three fish", "the thief"]),
    ("plan", "planned", "planned", ["the festival", "a trip to the coast", "the concert"]),
]
FRAMES = {
    ("train", "past"): [
        "{P} {past} {thing} last week.",
        "{thing} was {done} by {p}.",
        "yesterday {p} {past} {thing}.",
        "{P} has just {done} {thing}.",
        "it is two years since {p} {past} {thing}.",
        "after lunch {p} {past} {thing} and went home.",
        "nobody saw how {p} {past} {thing}.",
        "{P} {past} {thing} while it rained.",
    ],
    ("train", "future"): [
        "{P} will {do} {thing} next week.",
        "{thing} will be {done} by {p}.",
        "tomorrow {p} is going to {do} {thing}.",
        "{P} plans to {do} {thing}.",
        "in two years {p} will {do} {thing}.",
        "after lunch {p} will {do} {thing} and go home.",
        "nobody knows when {p} will {do} {thing}.",
        "{P} hopes to {do} {thing} before it rains.",
    ],
    ("eval", "past"): [
        "{P} {past} {thing}.",
        "we heard that {p} {past} {thing} in the end.",
        "by noon {p} had {done} {thing}.",
        "once {p} {past} {thing}, the room fell silent.",
    ],
    ("eval", "future"): [
        "{P} is about to {do} {thing}.",
        "we hear that {p} intends to {do} {thing} in the end.",
        "by noon {p} should {do} {thing}.",
        "until {p} can {do} {thing}, the room stays silent.",
    ],
}
COUNTS = {"train": 600, "eval": 200}


def sentence(part: str, label: str, draw: random.Random) -> str:
    """One sentence of a class."""
    person = draw.choice(PEOPLE[part])
    do, past, done, things = draw.choice(DEEDS)
    text = draw.choice(FRAMES[part, label]).format(
        P=person, p=person, do=do, past=past, done=done, thing=draw.choice(things)
    )
    return text[0].upper() + text[1:]


def main() -> None:
    """Write both files."""
    home = Path(__file__).parents[1] / "peftc" / "cli" / "demo"
    for part, count in COUNTS.items():
        draw = random.Random(f"demo {part}")
        rows: dict[str, str] = {}
        while len(rows) < count:
            label = ("past", "future")[len(rows) % 2]
            rows.setdefault(sentence(part, label, draw), label)
        lines = [json.dumps({"text": t, "label": n}) for t, n in rows.items()]
        (home / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
