"""Draw the denoising of some rows as an animated GIF, with Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dllm.chat.film import Frame
from dllm.chat.tokens import COMMITTED, END_MARK, GIVEN, MASKED, NEW, TENTATIVE, pieces

INK = {
    GIVEN: (110, 119, 129),
    MASKED: (208, 215, 222),
    TENTATIVE: (191, 120, 0),
    NEW: (26, 127, 55),
    COMMITTED: (31, 35, 40),
}
PAPER, RULE = (255, 255, 255), (228, 232, 236)
COLORS = 64  # the colors above, and their shades at the edges of letters


class Mark(NamedTuple):
    """A piece of text and its position: x in pixels, line counted from 0."""

    text: str
    state: str
    x: float
    line: int


def animated(
    tokenizer: Any,
    rows: Sequence[Sequence[Frame]],
    *,
    titles: Sequence[str],
    fps: float = 8,
    hold: float = 2.0,
    width: int = 720,
    font: Path | str | None = None,
    font_size: int = 20,
) -> bytes:
    """An endless GIF of B rows, one below the other, with one image per step.

    Args:
        tokenizer: decodes the token ids.
        rows: the frames of each row, the same number for all.
        titles: one per row.
        fps: steps per second.
        hold: seconds that the last step is shown.
        width: of the image, pixels; longer lines are wrapped.
        font: a TrueType or OpenType file; Pillow's own font has Latin letters only.
        font_size: pixels.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: a number that is not positive, no frames, rows of different lengths, or not one title per row.
        OSError: the font file cannot be read.
    """
    for name, value in dict(fps=fps, hold=hold, width=width, font_size=font_size).items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value}")
    if len(titles) != len(rows) or len({len(frames) for frames in rows}) != 1 or not rows[0]:
        counts = [len(frames) for frames in rows]
        raise ValueError(f"rows must have a title each and equally many frames, got {len(titles)} and {counts}")
    letters = _font(font, font_size)
    margin, leading = font_size, round(1.6 * font_size)
    inside = width - 2 * margin
    scenes = [
        [list(layout(tokenizer, frame, letters.getlength, inside)) for frame in step]
        for step in zip(*rows, strict=True)
    ]
    lines = [
        max(1 + max((mark.line for mark in scene[row]), default=0) for scene in scenes) for row in range(len(rows))
    ]
    images = [_image(scene, titles, lines, letters, width, margin, leading) for scene in scenes]
    buffer = io.BytesIO()
    durations = [round(1000 / fps)] * (len(images) - 1) + [round(1000 * hold)]
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()


def layout(tokenizer: Any, frame: Frame, measure: Callable[[str], float], width: float) -> Iterator[Mark]:
    """Place the text of a frame on lines of at most `width`; only words wider than a line are broken."""
    x, line = 0.0, 0
    for word in _words(pieces(tokenizer, frame.tokens), frame.states):
        if x and x + measure("".join(piece for piece, _ in word).rstrip("\n")) > width:
            x, line = 0.0, line + 1
        for piece, kind in word:
            for n, part in enumerate(piece.split("\n")):
                if n or x + measure(part) > width:
                    x, line = 0.0, line + 1
                part = part if x else part.lstrip(" ")
                yield Mark(part, kind, x, line)
                x += measure(part)


def _words(texts: Sequence[str], states: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Group tokens into words; a word begins at a space, a line break, a mask or an end of text."""
    words: list[list[tuple[str, str]]] = []
    for piece, kind in zip(texts, states, strict=True):
        if not words or piece.startswith((" ", "\n", END_MARK)):
            words.append([])
        words[-1].append((piece, kind))
    return words


def _image(
    scene: Sequence[Sequence[Mark]],
    titles: Sequence[str],
    lines: Sequence[int],
    font: Any,
    width: int,
    margin: int,
    leading: int,
) -> Any:
    """One image: for each row its title, its lines of text, and a horizontal rule below."""
    from PIL import Image, ImageDraw

    height = margin + sum((count + 1) * leading + margin for count in lines)
    image = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(image)
    top = margin
    for marks, title, count in zip(scene, titles, lines, strict=True):
        draw.text((margin, top), _shortened(title, font, width - 2 * margin), INK[GIVEN], font)
        top += leading
        for mark in marks:
            _draw_mark(draw, mark, margin + mark.x, top + mark.line * leading, font)
        top += count * leading + margin
        draw.line([(margin, top - margin / 2), (width - margin, top - margin / 2)], RULE)
    return image.quantize(COLORS)


def _draw_mark(draw: Any, mark: Mark, x: float, y: float, font: Any) -> None:
    if mark.state == MASKED or mark.text.strip() == END_MARK:  # not every font has these characters
        size, right = font.size, x + max(font.getlength(mark.text), font.size / 2)
        inset = 0.1 * size if mark.state == MASKED else 0.3 * size
        draw.rectangle([x + 2, y + inset, right - 2, y + 1.2 * size - inset], INK[MASKED])
        return
    draw.text((x, y), mark.text, INK[mark.state], font)


def _shortened(text: str, font: Any, width: float) -> str:
    """The text on one line, cut to `width` pixels with an ellipsis."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font(path: Path | str | None, size: int) -> Any:
    try:
        from PIL import ImageFont
    except ImportError as error:
        raise ImportError("a GIF needs Pillow, which is not installed: pip install 'dllm[chat]'") from error
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(str(path), size)
