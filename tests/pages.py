"""A report as a reader finds it, and images whose names look like markup."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ("a", "'\"><b onmouseover=alert(2)>", "</script><script>alert(3)</script>")
EVIL = "<img src=x onerror=alert(1)>.png"


def table(folder: Path, *, shade: int, n: int = 6, labelled: bool = True) -> Path:
    """A CSV of images whose files, folders and classes have names that look like markup."""
    rng = np.random.default_rng(shade)
    file = folder / "list.csv"
    file.parent.mkdir(parents=True)
    rows = []
    for k, name in enumerate(NAMES):
        place = Path("'\"><b onmouseover=alert(2)>") / str(k)
        (folder / place).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 60, (12, 12, 3)) + 60 * k + shade
            path = place / f"{i}{EVIL}"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / path)
            rows.append([str(path), name] if labelled else [str(path)])
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([["path", "label"] if labelled else ["path"], *rows])
    return file


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inner: dict[str, list[str]] = {"script": [], "style": []}
        self.words: list[str] = []
        self.data: dict[str, str] = {}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("dd", "dt", "li", "p", "td", "th", "h1", "span"):
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script" and self.elements[-1][1].get("id"):
            self.data[str(self.elements[-1][1]["id"])] = data
        self.inner.get(self.cdata_elem or "", self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [str(attrs[name]) for _, attrs in self.elements if name in attrs]
