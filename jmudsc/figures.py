"""Figures of losses, drawn with matplotlib, which is optional."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jmudsc.landscape import barrier, Plane, with_sum

_LEVELS = 20
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
            "figures: matplotlib is not installed, it is needed to draw; run pip "
            "install 'jmudsc[figures]'."
        ) from error


def draw_plane(
    plane: Plane,
    xs: np.ndarray,
    ys: np.ndarray,
    losses: Mapping[str, np.ndarray],
    own: Mapping[str, Mapping[str, float]],
) -> bytes:
    """Draw the losses over a plane, a panel for each task and one for their sum.

    Colours end a little above the largest loss of the networks, so that what is between
    them can be seen.

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
        low = min(np.nanmin(values), *known)
        high = max(1.25 * max(known), np.nextafter(low, np.inf))
        levels = np.linspace(low, high, _LEVELS)
        shown = axis.contourf(xs, ys, values, levels, cmap="viridis_r", extend="max")
        axis.contour(xs, ys, values, levels, colors="k", linewidths=0.3, alpha=0.4)
        figure.colorbar(shown, ax=axis, shrink=0.85, format="%.2f")
        for name, (x, y) in plane.places.items():
            _mark(axis, name, x, y, plane.distances[name])
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
            label = f"{name}, barrier {barrier(values, steps):.3g}"
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


def _mark(axis: Any, name: str, x: float, y: float, distance: float) -> None:
    """Mark a network; one that is not on the plane by an empty circle."""
    on_plane = distance == 0
    label = name if on_plane else f"{name}\n(projected, {distance:.3g} off)"
    axis.plot(x, y, "o", color="k", mfc="k" if on_plane else "none", ms=5)
    box = {"boxstyle": "round,pad=0.1", "fc": "w", "ec": "none", "alpha": 0.7}
    where = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
    axis.annotate(label, (x, y), fontsize=7, bbox=box, **where)


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
