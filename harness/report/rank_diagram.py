"""The critical-difference diagram (Demsar 2006, figure 1): average ranks on an axis, the best on the left, a
ruler as long as the critical difference, and bars across methods that do not differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_INK = "#222222"
_BAR, _LINE = 0.45, 1.0  # distance between bars, and between names; the axis is at 0, and y grows upwards
_MOST_TICKS = 15


def cliques(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Maximal groups of at least two methods whose average ranks do not differ.

    Args:
        ranks: average ranks in ascending order.
        difference: the critical one; ranks that are exactly so far apart do not differ.

    Returns:
        Of each group the indices of its first and last method.
    """
    found: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(i for i, other in enumerate(ranks) if other - rank <= difference)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def levels(groups: Sequence[tuple[int, int]]) -> list[int]:
    """A level for each group, from 0, so that no two groups of a level share a method."""
    ends: list[int] = []  # the last method of each level so far
    chosen = []
    for first, last in groups:
        level = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[level : level + 1] = [last]
        chosen.append(level)
    return chosen


def height(average: Mapping[str, float], difference: float) -> float:
    """The height in inches that a diagram needs, with room for a title."""
    return 1.0 + 0.24 * -_lowest(sorted(average.values()), difference)


def draw_ranks(
    axes: Any, average: Mapping[str, float], difference: float, colours: Mapping[str, str]
) -> None:
    """Draw the diagram.

    Args:
        axes: of matplotlib; its own axes are hidden.
        average: the average rank of each method, 1 is the best.
        difference: the critical difference of average ranks.
        colours: of the lines, by method.
    """
    names = sorted(average, key=lambda name: average[name])
    ranks = [average[name] for name in names]
    axes.set_axis_off()
    axes.set(xlim=(1, len(names)), ylim=(_lowest(ranks, difference), 2.2))
    _draw_axis(axes, len(names), difference)
    groups = cliques(ranks, difference)
    for (first, last), level in zip(groups, levels(groups), strict=True):
        ends, y = (ranks[first] - 0.03, ranks[last] + 0.03), -_BAR * (level + 1)
        axes.plot(ends, (y, y), color=_INK, linewidth=3.5, solid_capstyle="butt", clip_on=False, zorder=3)
    top, half = _first_line(ranks, difference), math.ceil(len(names) / 2)
    beyond = 0.03 * (len(names) - 1)
    for i, name in enumerate(names):
        left = i < half  # from the outside to the inside on both sides, so that no lines cross
        y = top - _LINE * (i if left else len(names) - 1 - i)
        x = 1 - beyond if left else len(names) + beyond
        axes.plot(
            (ranks[i], ranks[i], x), (0, y, y), color=colours[name], linewidth=1.2, clip_on=False, zorder=2
        )
        axes.plot(ranks[i], 0, "o", color=colours[name], markersize=5, clip_on=False, zorder=4)
        told = f"{name} ({ranks[i]:.2f})  " if left else f"  ({ranks[i]:.2f}) {name}"
        axes.text(x, y, told, ha="right" if left else "left", va="center", color=_INK)


def _draw_axis(axes: Any, count: int, difference: float) -> None:
    """The axis of ranks, and above it the critical difference."""
    axes.plot((1, count), (0, 0), color=_INK, linewidth=0.9, clip_on=False, zorder=1)
    for rank in range(1, count + 1, 1 + count // (_MOST_TICKS + 1)):
        axes.plot((rank, rank), (0, 0.22), color=_INK, linewidth=0.9, clip_on=False, zorder=1)
        axes.text(rank, 0.32, str(rank), ha="center", va="bottom", color=_INK)
    end = 1 + difference
    axes.plot(
        (1, 1, 1, end, end, end),
        (1.3, 1.6, 1.45, 1.45, 1.6, 1.3),
        color=_INK,
        linewidth=0.9,
        clip_on=False,
    )
    axes.text(1 + difference / 2, 1.65, f"CD = {difference:.2f}", ha="center", va="bottom", color=_INK)


def _first_line(ranks: Sequence[float], difference: float) -> float:
    """Where the uppermost names stand: below all bars."""
    return -_BAR * (max(levels(cliques(ranks, difference)), default=-1) + 1) - _LINE


def _lowest(ranks: Sequence[float], difference: float) -> float:
    return _first_line(ranks, difference) - _LINE * (math.ceil(len(ranks) / 2) - 1) - 0.5
