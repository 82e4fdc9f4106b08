"""Figures: losses drawn with matplotlib, which is optional."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jmudsc.landscape.losses import barrier, with_sum
from jmudsc.landscape.plane import Plane

_LEVELS = 15
_STYLES = "-", "--", ":", "-."


def check_installed() -> None:
    """Check that figures can be drawn.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "figures: expected matplotlib to draw with, got none. Run pip install "
            "'jmudsc[figures]'."
        ) from error


def draw_plane(
    plane: Plane,
    xs: np.ndarray,
    ys: np.ndarray,
    losses: Mapping[str, np.ndarray],
    own: Mapping[str, Mapping[str, float]],
) -> bytes:
    """Draw the losses over a plane, a panel for each task and one for their sum.

    Colors end a little above the largest loss of the networks, or at the median of all
    points if that is higher, so that one can see what is between the networks.

    Args:
        plane: the plane.
        xs: x of the columns.
        ys: y of the rows.
        losses: task -> losses, one row per y.
        own: name of a network -> task -> its loss.

    Returns:
        A PNG file.
    """
    panels = with_sum(losses)
    figure, axes = _panels(len(panels), aspect=np.ptp(ys) / np.ptp(xs))
    for axis, (task, values) in zip(axes, panels.items(), strict=True):
        known = [with_sum(own[name])[task] for name in own]
        finite = [*known, *values[np.isfinite(values)]]
        low, middle = min(finite), float(np.median(finite))
        high = max(1.25 * max(known), middle, np.nextafter(low, np.inf))
        levels = np.linspace(low, high, _LEVELS)
        shown = axis.contourf(xs, ys, values, levels, cmap="viridis_r", extend="max")
        axis.contour(xs, ys, values, levels, colors="k", linewidths=0.3, alpha=0.4)
        figure.colorbar(shown, ax=axis, shrink=0.85, format="%.2f")
        for names in _together(plane, np.ptp(xs) / 50):
            _mark(axis, plane, names)
        axis.set(title=task, aspect="equal", xlabel="distance of variables")
    return _png(figure)


def draw_lines(
    steps: np.ndarray,
    lines: Mapping[str, Mapping[str, np.ndarray]],
    ends: Sequence[str],
) -> bytes:
    """Draw the losses between two networks, a panel for each task and their sum.

    Args:
        steps: from 0 to 1.
        lines: name of a way to go -> task -> losses at the steps.
        ends: the names of the two networks.

    Returns:
        A PNG file.
    """
    tasks = list(with_sum(next(iter(lines.values()))))
    figure, axes = _panels(len(tasks), aspect=0.8)
    for axis, task in zip(axes, tasks, strict=True):
        for style, (name, losses) in zip(_STYLES, lines.items(), strict=False):
            values = with_sum(losses)[task]
            label = f"{name}, barrier {barrier(values, steps):.3f}"
            (line,) = axis.plot(steps, values, style, label=label)
            ways = [values[0], values[-1]]
            axis.plot([0, 1], ways, color=line.get_color(), lw=0.5, alpha=0.5)
        axis.set(title=task, ylabel="loss", xticks=[0, 0.5, 1])
        axis.set_xticklabels([ends[0], "half way", ends[1]])
        axis.legend(fontsize="small")
    return _png(figure)


def _panels(count: int, aspect: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    height = 3.6 * float(np.clip(aspect, 0.4, 1.5)) + 0.8
    figure = Figure(figsize=(4.6 * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _together(plane: Plane, near: float) -> list[list[str]]:
    """Put networks into groups by their places, so that one label serves each."""
    groups: list[list[str]] = []
    for name, place in plane.places.items():
        for group in groups:
            if np.hypot(*np.subtract(place, plane.places[group[0]])) < near:
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _mark(axis: Any, plane: Plane, names: Sequence[str]) -> None:
    """Mark networks at one place, by an empty circle if none is on the plane."""
    off = [plane.distances[name] for name in names]
    labels = [
        name if _is_on(plane, name) else f"{name} (projected, {distance:.3g} off)"
        for name, distance in zip(names, off, strict=True)
    ]
    inside = "k" if any(_is_on(plane, name) for name in names) else "none"
    axis.plot(*plane.places[names[0]], "o", color="k", mfc=inside, ms=5)
    box = {"boxstyle": "round,pad=0.1", "fc": "w", "ec": "none", "alpha": 0.7}
    where = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    text = "\n".join(labels)
    axis.annotate(text, plane.places[names[0]], fontsize=7, bbox=box, **where)


def _is_on(plane: Plane, name: str) -> bool:
    """Whether a network is on a plane, but for rounding."""
    return plane.distances[name] < 1e-3 * plane.places[plane.corners[1]][0]


def _png(figure: Any) -> bytes:
    """Write a figure with 128 colours: a quarter of the size, and none is missed."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    with Image.open(drawn) as image:
        flat = image.convert("RGB").quantize(128, dither=Image.Dither.NONE)
    flat.save(small, format="png", optimize=True)
    return small.getvalue()
