"""One figure of several sweeps against another, as a curve for each sweep: quality against diversity.

    python tools/figure_against_figure.py recall class_accuracy out.svg "classifier-free=free/sweep.csv" "classifier=classifier/sweep.csv"

The sweeps are those of `smalti evaluate --sweep FLAG=... --out FOLDER`, with one flag each; points are labelled with its values and have the intervals of
the sweep. Standard library only.
"""

import csv
import sys

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]
LEFT, TOP, WIDTH, HEIGHT = 70, 60, 520, 360


def read(path):
    """Rows of a sweep and the name of its flag, which is the second column."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        sys.exit(f"{path}: expected a sweep with rows, found none")
    return list(rows[0])[1], rows


def ticks(low, high):
    step = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / step <= 7)
    first = int(low / step) * step
    return [first + index * step for index in range(12) if low <= first + index * step <= high]


def main():
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    x, y, out, *sweeps = sys.argv[1:]
    series = []
    for sweep in sweeps:
        name, _, path = sweep.partition("=")
        flag, rows = read(path)
        missing = [column for column in (x, y) if column not in rows[0]]
        if missing:
            sys.exit(f"{path}: expected a column {missing[0]}, found {', '.join(rows[0])}")
        point = lambda row: {key: float(row[key]) for column in (x, y) for key in (column, f"{column}_low", f"{column}_high")}
        series.append((f"{name} ({flag})", [(row[flag], point(row)) for row in rows]))
    points = [point for _, rows in series for _, point in rows]

    def scale(column, start, length):
        low, high = min(p[f"{column}_low"] for p in points), max(p[f"{column}_high"] for p in points)
        margin = 0.04 * (high - low)
        low, high = low - margin, high + margin
        return low, high, lambda value: start + length * (value - low) / (high - low)

    x_low, x_high, across = scale(x, LEFT, WIDTH)
    y_low, y_high, up = scale(y, TOP + HEIGHT, -HEIGHT)
    text = lambda at_x, at_y, words, more="": f'<text x="{at_x:.1f}" y="{at_y:.1f}" {more}>{words}</text>'
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 30}" height="{TOP + HEIGHT + 60}" font-family="sans-serif" font-size="13" fill="#222222">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#cccccc"/>',
        text(LEFT + WIDTH / 2, TOP + HEIGHT + 45, x.replace("_", " "), 'text-anchor="middle"'),
        text(18, TOP + HEIGHT / 2, y.replace("_", " "), f'text-anchor="middle" transform="rotate(-90 18 {TOP + HEIGHT / 2})"'),
    ]
    for value in ticks(x_low, x_high):
        svg.append(text(across(value), TOP + HEIGHT + 20, f"{value:.2f}", 'text-anchor="middle"'))
    for value in ticks(y_low, y_high):
        svg.append(f'<path d="M{LEFT} {up(value):.1f}h{WIDTH}" stroke="#eeeeee"/>')
        svg.append(text(LEFT - 8, up(value) + 4, f"{value:.2f}", 'text-anchor="end"'))
    for index, (name, rows) in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        svg.append(f'<circle cx="{LEFT + 8}" cy="{16 + 15 * index}" r="5" fill="{colour}"/>' + text(LEFT + 20, 20 + 15 * index, name))
        places = [(across(p[x]), up(p[y])) for _, p in rows]
        svg.append(f'<path d="M{" L".join(f"{a:.1f} {b:.1f}" for a, b in places)}" stroke="{colour}" stroke-width="1.8" fill="none"/>')
        for (value, p), (a, b) in zip(rows, places):
            bars = f'M{across(p[f"{x}_low"]):.1f} {b:.1f}H{across(p[f"{x}_high"]):.1f}M{a:.1f} {up(p[f"{y}_low"]):.1f}V{up(p[f"{y}_high"]):.1f}'
            svg.append(f'<path d="{bars}" stroke="{colour}" stroke-opacity="0.35" fill="none"/><circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>')
            svg.append(text(a + 7, b - 7, value, f'fill="{colour}"'))
    svg.append("</svg>")
    with open(out, "w") as file:
        file.write("\n".join(svg) + "\n")


main()
