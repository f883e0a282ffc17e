"""Pictures of runs as data URIs, small enough for a page that holds many."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

from .gather import Setting

WIDEST = 1_400
"""Pixels across; wider pictures are scaled down."""
MOST_BYTES = 4_000_000
"""Of all pictures of a page together, as text; what would go beyond is named and left out."""


class Album:
    """Pictures of a page, and the bytes that are left for more."""

    def __init__(self, left: int = MOST_BYTES) -> None:
        self.left = left

    def pictures(self, setting: Setting) -> Iterator[tuple[str, str | None]]:
        """Captions and data URIs of a setting's split and of its methods' forecasts.

        One split stands for all, that of the first run; one forecast a method, that of its lowest seed. The
        URI is None where the page has no room left.
        """
        groups = list(setting.groups.values())
        splits = [(seed, path / "split.png") for g in groups for seed, path in sorted(g.paths.items())]
        yield from self._first("who holds what", splits)
        for group in groups:
            forecasts = [(seed, path / "forecasts.png") for seed, path in sorted(group.paths.items())]
            yield from self._first(f"forecasts, {group.method}", forecasts)

    def _first(self, title: str, files: list[tuple[int, Path]]) -> Iterator[tuple[str, str | None]]:
        """The first of these files that is a picture, if one is."""
        for seed, path in files:
            if path.is_file() and (uri := self._embedded(path)) != "":
                left_out = f" (left out for size: {path})" if uri is None else ""
                yield f"{title}, seed {seed}{left_out}", uri
                return

    def _embedded(self, path: Path) -> str | None:
        """Data URI of a picture; None without room for it, empty where the file is no picture."""
        from PIL import Image

        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError):  # what Pillow raises for broken files
            return ""
        if picture.width > WIDEST:
            height = round(picture.height * WIDEST / picture.width)
            picture = picture.resize((WIDEST, height), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        picture.quantize(128, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        uri = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
        if len(uri) > self.left:
            return None
        self.left -= len(uri)
        return uri
