"""Draws the diagrams of the documentation: python docs/draw_diagrams.py writes docs/diagrams/*.svg.

Boxes on a grid and arrows between them, as SVG that needs no font, script or network. A test compares the files with what
this draws.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "diagrams"
WIDTH, LINE, PAD = 7.2, 17, 11  # pixels a character, a line, around a text
COLOURS = {
    "data": ("#e8f1f8", "#1f4e79"),
    "model": ("#fdf0e6", "#b3541e"),
    "core": ("#f2f2f2", "#6b6b6b"),
    "store": ("#ecf5ec", "#3d7a3f"),
}


@dataclass(frozen=True)
class Box:
    """Text of some lines (the first is bold) with its upper left corner at `x`, `y`."""

    x: int
    y: int
    width: int
    text: str
    kind: str = "data"

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    @property
    def height(self) -> int:
        return LINE * len(self.lines) + 2 * PAD

    def edge(self, side: str) -> tuple[int, int]:
        """The middle of a side: left, right, top, bottom."""
        x = {"left": self.x, "right": self.x + self.width}.get(side, self.x + self.width // 2)
        y = {"top": self.y, "bottom": self.y + self.height}.get(side, self.y + self.height // 2)
        return x, y

    def svg(self) -> str:
        fill, stroke = COLOURS[self.kind]
        drawn = [
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="5" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="1.3"/>'
        ]
        for number, line in enumerate(self.lines):
            longest = (self.width - 2 * PAD) / WIDTH
            assert len(line) <= longest, f"{line!r} is wider than its box: {len(line)} > {longest:.0f}"
            weight = ' font-weight="bold"' if number == 0 else ""
            y = self.y + PAD + LINE * number + 13
            drawn.append(f'<text x="{self.x + PAD}" y="{y}"{weight}>{html.escape(line)}</text>')
        return "\n".join(drawn)


@dataclass(frozen=True)
class Arrow:
    """From the middle of one side to that of another, with at most one bend; `label` stands beside its middle."""

    start: tuple[int, int]
    end: tuple[int, int]
    label: str = ""
    dashed: bool = False

    def svg(self) -> str:
        (x1, y1), (x2, y2) = self.start, self.end
        dash = ' stroke-dasharray="5 4"' if self.dashed else ""
        line = f'<path d="M{x1} {y1} L{x2} {y2}" fill="none" stroke="#444" stroke-width="1.3"{dash} marker-end="url(#a)"/>'
        if not self.label:
            return line
        leftward = x2 < x1  # its label stands on the left
        x, y = (x1 + x2) // 2 + (-10 if leftward else 8), (y1 + y2) // 2 - 2
        anchor = ' text-anchor="end"' if leftward else ""
        return f'{line}\n<text x="{x}" y="{y}" font-size="11" fill="#555"{anchor}>{html.escape(self.label)}</text>'


def drawing(title: str, width: int, height: int, parts: list[Box | Arrow]) -> str:
    """The file's text. `title` is what those hear who do not see it."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="12">\n'
        f"<title>{html.escape(title)}</title>\n"
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#444"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
    )
    return head + "\n".join(part.svg() for part in parts) + "\n</svg>\n"


def step() -> str:
    files = Box(20, 20, 250, "indexed files\ntext .bin/.idx, captioned\npictures, Megatron's format", "store")
    config = Box(310, 20, 250, "config\npreset + file + command line:\nfrozen, checked before a run")
    plan = Box(
        165,
        125,
        270,
        "PackPlanner (every rank alike)\nmixture by the curriculum's share,\npacks, order; place of a few bytes",
    )
    workers = Box(160, 235, 280, "workers of a rank\nids, labels, cu_seqlens, row index;\npictures decoded to uint8")
    encoder = Box(20, 345, 250, "encoder + projector\npatchify, ViT, pixel-shuffle:\na row a placeholder", "model")
    words = Box(310, 345, 250, "embedding\nthis rank's part of the\nvocabulary", "model")
    fuse = Box(165, 455, 270, "fuse_embeddings\neach position copied once from\nwhere it stands; one reduction", "model")
    blocks = Box(165, 565, 270, "language blocks, stage by stage\nattention inside documents\n(cu_seqlens)", "model")
    loss = Box(165, 675, 270, "loss of each token\nsplit by modality, summed, divided\nby the batch's tokens", "model")
    core = Box(
        600, 455, 250, "megatron-core\nschedules 1F1B, interleaved;\nDDP; distributed optimiser;\ndist_checkpointing", "core"
    )
    saved = Box(600, 675, 250, "checkpoint\nweights, moments, place in the\ndata: any layout resumes", "store")
    parts: list[Box | Arrow] = [files, config, plan, workers, encoder, words, fuse, blocks, loss, core, saved]
    parts += [
        Arrow((190, files.y + files.height), (240, plan.y)),
        Arrow((430, config.y + config.height), (360, plan.y)),
        Arrow(plan.edge("bottom"), workers.edge("top"), "spans of documents"),
        Arrow((240, workers.y + workers.height), (190, encoder.y), "pictures"),
        Arrow((360, workers.y + workers.height), (430, words.y), "ids"),
        Arrow((190, encoder.y + encoder.height), (240, fuse.y)),
        Arrow((430, words.y + words.height), (360, fuse.y)),
        Arrow(fuse.edge("bottom"), blocks.edge("top"), "hidden states"),
        Arrow(blocks.edge("bottom"), loss.edge("top")),
        Arrow((600, 491), fuse.edge("right"), dashed=True),
        Arrow((600, 510), blocks.edge("right"), dashed=True),
        Arrow(core.edge("bottom"), saved.edge("top")),
    ]
    title = "A step: indexed files through the planner and a rank's workers to encoder, embedding, fusion, blocks and loss"
    return drawing(title, 870, 760, parts)


def study() -> str:
    shares = ("no text yet", "text to 20 %", "text to 40 %", "text to 60 %", "text to 80 %", "text to 100 %")
    parts: list[Box | Arrow] = []
    trunk = [Box(20 + 170 * n, 20, 140, name, "data" if n else "core") for n, name in enumerate(shares)]
    parts += trunk
    parts += [Arrow(a.edge("right"), b.edge("left")) for a, b in zip(trunk, trunk[1:], strict=False)]
    for piece in trunk:
        branch = Box(piece.x, 95, 140, "+ images\nequal steps,\none policy", "model")
        tuned = Box(piece.x, 205, 140, "instructions", "model")
        asked = Box(piece.x, 280, 140, "measured\nbefore, after", "store")
        below = [piece, branch, tuned, asked]
        parts += below[1:]
        parts += [Arrow(a.edge("bottom"), b.edge("top")) for a, b in zip(below, below[1:], strict=False)]
    title = "A branch study: one text trunk, saved at each introduction point; a branch from each, fine-tuned and measured"
    return drawing(title, 1030, 360, parts)


DIAGRAMS = {"step.svg": step, "study.svg": study}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DIAGRAMS.items():
        (FOLDER / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
