"""SVG by hand: boxes, lines and text, in colours that follow the reader's light or dark page."""

from __future__ import annotations

from dataclasses import dataclass, field

from peftc.ground.markup import escape

STYLE = """
svg{--ink:#26303c;--soft:#667080;--line:#9aa4b2;--stream:#3b4656;--page:#fff;--block:#f7f8fa;
--edge:#d5dae1;--box:#e9ecf1;--rim:#b6bfcb;--green:#2f9e44;--leaf:#e3f6e6;--deep:#1b6e2e;
--amber:#fff1cf;--gold:#d9a114;background:var(--page)}
@media (prefers-color-scheme:dark){svg{--ink:#e3e8ef;--soft:#9aa6b5;--line:#667386;
--stream:#c3ccd8;--page:#14181e;--block:#1b2129;--edge:#303945;--box:#29313c;--rim:#4a5667;
--green:#4cc266;--leaf:#17331f;--deep:#8ce5a0;--amber:#3a2f12;--gold:#d9a114}}
text{font:13px system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;fill:var(--ink)}
.line{stroke:var(--line);stroke-width:1.5;fill:none}
.stream{stroke:var(--stream);stroke-width:3;fill:none;stroke-linecap:round}
.wire{stroke:var(--green);stroke-width:1.6;fill:none}
.dot{fill:var(--green)}.sum{fill:var(--page);stroke:var(--stream);stroke-width:1.8}
.block{fill:var(--block);stroke:var(--edge)}.frozen{fill:var(--box);stroke:var(--rim)}
.touched{fill:var(--box);stroke:var(--green);stroke-width:1.8}
.trained{fill:var(--amber);stroke:var(--gold);stroke-width:1.8}
.piece{fill:var(--leaf);stroke:var(--green);stroke-width:1.8}
.small{font-size:11px;fill:var(--soft)}.green{fill:var(--deep);font-weight:600}
.code{font:11px ui-monospace,"DejaVu Sans Mono",monospace;fill:var(--deep)}
.title{font-weight:600;font-size:14px}.arrow{fill:var(--line)}a:hover rect{filter:brightness(.95)}
a{cursor:pointer;text-decoration:none}
"""
ARROW = (
    '<defs><marker id="to" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path class="arrow" d="M0 0L8 4L0 8z"/></marker></defs>'
)
BOX, HIGH = 124, 36


@dataclass
class Drawing:
    """SVG elements, and how far down they reach. Wires lie above lines, boxes above wires."""

    under: list[str] = field(default_factory=list)
    wires: list[str] = field(default_factory=list)
    over: list[str] = field(default_factory=list)
    y: float = 24

    def box(
        self, x: float, y: float, kind: str, text: str, small: str = "", link: str = "",
        tip: str = "", width: float = BOX,
    ) -> None:  # fmt: skip
        """A rectangle with a label, a smaller one under it, a tooltip and a target."""
        label = "green" if kind == "piece" else ""
        below = "code" if kind == "piece" else "small"
        made = (
            f"<title>{escape(tip or text)}</title>"
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{HIGH}" rx="7"/>'
            f'<text class="{label}" x="{x + width / 2}" y="{y + (16 if small else 22)}" '
            f'text-anchor="middle">{escape(text)}</text>'
            f'<text class="{below}" x="{x + width / 2}" y="{y + 30}" text-anchor="middle">'
            f"{escape(small)}</text>"
        )
        self.over.append(f'<a href="#{escape(link)}">{made}</a>' if link else f"<g>{made}</g>")

    def panel(self, x: float, y: float, width: float, height: float) -> None:
        """The background of a branch."""
        self.under.append(
            f'<rect class="block" x="{x}" y="{y}" width="{width}" height="{height}" rx="12"/>'
        )

    def line(self, *points: tuple[float, float], kind: str = "line", arrow: bool = False) -> None:
        """A line through points."""
        path = " ".join(f"{x},{y}" for x, y in points)
        end = ' marker-end="url(#to)"' if arrow else ""
        made = f'<polyline class="{kind}" points="{path}"{end}/>'
        (self.wires if kind == "wire" else self.under).append(made)

    def dot(self, x: float, y: float) -> None:
        """Where a wire meets a site."""
        self.over.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"/>')

    def sum(self, x: float, y: float) -> None:
        """An addition on the residual stream."""
        self.over.append(
            f'<circle class="sum" cx="{x}" cy="{y}" r="9"/>'
            f'<text x="{x}" y="{y + 4.5}" text-anchor="middle">+</text>'
        )

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Text at a place."""
        self.over.append(f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>')

    def svg(self, width: float, title: str) -> str:
        """The whole picture."""
        parts = "".join((*self.under, *self.wires, *self.over))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {self.y + 20}" '
            f'width="{width}" role="img"><!-- peftc --><title>{escape(title)}</title>'
            f"<style>{STYLE}</style>{ARROW}{parts}</svg>\n"
        )
