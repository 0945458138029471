"""The training curves of several runs in one picture, and their means over tenths of the run as a table.

    python measurements/curves.py --out FILE.svg NAME=RUN [NAME=RUN ...]

RUN is a run directory; runs of the same NAME share a colour. The table goes to the screen.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2 import Environment

from acclimate.report.charts import smoothed, svg_path, ticks
from acclimate.runs.files import MetricsLog

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 220, 44, 28, 24  # of a term's panel, in pixels
COLOURS = ("#3b82c4", "#d9822b", "#5a9e4b", "#b0569e")  # legible on white and on black

PICTURE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{{ width }}" height="{{ height }}" font-family="sans-serif"
 font-size="11" fill="#808080">
{% for panel in panels %}<g transform="translate({{ panel.left }} 0)">
<text x="{{ left }}" y="14" font-size="12">{{ panel.name }}</text>
{% for tick in panel.y %}<path d="M{{ left }} {{ tick.at }}H{{ panel.right }}" stroke="#808080" stroke-opacity=".3"/>
<text x="{{ left - 6 }}" y="{{ tick.at + 4 }}" text-anchor="end">{{ tick.text }}</text>
{% endfor %}{% for tick in panel.x %}<text x="{{ tick.at }}" y="{{ height - 30 }}" text-anchor="middle">\
{{ tick.text }}</text>
{% endfor %}{% for line in panel.lines %}<path d="{{ line.path }}" fill="none" stroke="{{ line.colour }}"\
 stroke-width="1.6"{% if line.again %} stroke-dasharray="5 3"{% endif %}/>
{% endfor %}</g>
{% endfor %}{% for name in names %}<text x="{{ left + 130 * loop.index0 }}" y="{{ height - 8 }}"\
 fill="{{ name.colour }}" font-weight="bold">{{ name.text }}</text>
{% endfor %}</svg>
"""


class Curve(NamedTuple):
    """A run's terms.

    Attributes:
        name: The run's.
        steps: (N,) the steps at which the terms were noted.
        terms: (N,) each, by name.
    """

    name: str
    steps: npt.NDArray[np.float64]
    terms: dict[str, npt.NDArray[np.float64]]


def read(argument: str) -> Curve:
    """The curves of NAME=RUN."""
    name, _, folder = argument.partition("=")
    lines = MetricsLog(Path(folder) / "metrics.jsonl").read()
    terms = {key: np.array([line.terms[key] for line in lines]) for key in lines[0].terms}
    return Curve(name, np.array([float(line.step) for line in lines]), terms)


def panel(curves: list[Curve], term: str, number: int) -> dict[str, object]:
    """What the picture shows of one term."""
    lines = [(curve, smoothed(curve.terms[term])) for curve in curves]
    scale = ticks(min(0.0, *(float(v.min()) for _, v in lines)), max(float(v.max()) for _, v in lines))
    last = max(float(curve.steps[-1]) for curve in curves)

    def across(x: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
        return LEFT + (WIDTH - LEFT - 16) * np.asarray(x) / last

    def up(y: npt.NDArray[np.float64] | float) -> npt.NDArray[np.float64]:
        return TOP + (HEIGHT - TOP) * (scale[-1] - np.asarray(y)) / (scale[-1] - scale[0])

    names = list(dict.fromkeys(curve.name for curve in curves))
    seen: list[str] = []
    drawn = []
    for curve, values in lines:
        path = svg_path(across(curve.steps), up(values))
        colour = COLOURS[names.index(curve.name) % len(COLOURS)]
        drawn.append({"path": path, "colour": colour, "again": curve.name in seen})
        seen.append(curve.name)
    return {
        "name": term,
        "left": WIDTH * number,
        "right": WIDTH - 16,
        "y": [{"at": round(float(up(v)), 1), "text": f"{v:g}"} for v in scale],
        "x": [{"at": round(float(across(v)), 1), "text": f"{v:,.0f}"} for v in ticks(0, last) if v <= last],
        "lines": drawn,
    }


def picture(curves: list[Curve]) -> str:
    """An SVG: a panel a term, a line a run."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    return (
        Environment(autoescape=True)
        .from_string(PICTURE)
        .render(
            panels=[panel(curves, term, number) for number, term in enumerate(curves[0].terms)],
            names=[{"text": name, "colour": COLOURS[i % len(COLOURS)]} for i, name in enumerate(names)],
            width=WIDTH * len(curves[0].terms),
            height=HEIGHT + BOTTOM + 24,
            left=LEFT,
        )
    )


def table(curves: list[Curve]) -> str:
    """Markdown: the mean of each term over every tenth of the run."""
    lines = ["| term | run | " + " | ".join(f"{10 * i} %" for i in range(1, 11)) + " |", "|---|---|" + "---:|" * 10]
    for term in curves[0].terms:
        for curve in curves:
            means = [f"{part.mean():.3f}" for part in np.array_split(curve.terms[term], 10)]
            lines.append(f"| {term} | {curve.name} | {' | '.join(means)} |")
    return "\n".join(lines)


def main() -> None:
    """Draw the picture and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN", help="a name, and a run directory")
    parser.add_argument("--out", type=Path, required=True, help="the SVG to write")
    args = parser.parse_args()
    curves = [read(argument) for argument in args.runs]
    for curve in curves:
        if list(curve.terms) != list(curves[0].terms):
            parser.error(f"{curve.name} has other terms than {curves[0].name}: compare runs of one method.")
    args.out.write_text(picture(curves), encoding="utf-8")
    print(table(curves))


if __name__ == "__main__":
    main()
