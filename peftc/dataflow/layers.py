"""Which layer of its stack a block belongs to, counted as the blocks come."""

from __future__ import annotations


class Layers:
    """A layer begins with a block that mixes tokens: attention to the stack itself, or a mixer."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.begun: dict[str, tuple[str, bool]] = {}  # by stack: where, and whether by a mixer

    def now(self, stack: str) -> int:
        """The layer that the stack is at."""
        return max(self.counts.get(stack, 0) - 1, 0)

    def attention(self, stack: str, place: str) -> None:
        """Self-attention begins one, but for the attention of a layer that a mixer began."""
        if self.begun.get(stack) != (place, True):
            self.begin(stack)
        self.begun[stack] = (place, False)

    def mixer(self, stack: str, place: str) -> None:
        """A mixer begins one, where nothing at its own numbered place has."""
        if self.begun.get(stack, ("", False))[0] != (place or None):
            self.begin(stack)
            self.begun[stack] = (place, True)

    def begin(self, stack: str) -> None:
        """Go on to the next layer."""
        self.counts[stack] = self.counts.get(stack, 0) + 1
