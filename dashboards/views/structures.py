"""Every configuration of a ratio: its knobs on parallel axes, and structures as a map of H against RC1."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cser_ray.knobs import KNOBS, USUAL_KNOBS
from cser_ray.methods import METHODS, has_ratio
from cser_ray.structure import number
from dashboards.views.values import column, drawn
from tuning.compare.comparison import ConfigurationRow

if TYPE_CHECKING:
    import pandas as pd

AXES = {
    "reset_interval": "H",
    "reset_ratio": "RC1",
    "gradient_ratio": "RC2",
    "compressor": "compressor",
    "share": "share",
    "residual_in_model": "γ",
    "outer_lr": "outer lr",
    "outer_momentum": "outer momentum",
    "reset_delay": "delay",
    "ratio_schedule": "schedule",
    "lr": "lr",
    "val_acc": "val. accuracy",
}
"""Columns of the parallel axes and their titles, in order; those of `KNOBS` where they differ."""
LINEAR = ("share", "val_acc", *KNOBS)
"""Axes that are not logarithmic."""
TEXTS = ("compressor", "ratio_schedule")
"""Axes of words."""
TICKS = 7
"""Ticks of an axis at most."""


def parallel(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Of a `frame`, for each ratio its axes, with ticks, and a line a configuration: where it crosses each, from 0 to 1."""
    return [{"ratio": ratio} | _axes(at.reset_index(drop=True)) for ratio, at in table.groupby("ratio")]


def heat(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Of a `frame`, for each ratio and method with both knobs: the best validation accuracy at each (H, RC1), over rates."""
    both = [name for name, b in METHODS.items() if {"reset_interval", "reset_ratio"} <= set(b.knobs)]
    table = table[table["method"].isin(both)]
    maximise = bool(table["maximise"].all())
    best = table.sort_values("val_acc", ascending=not maximise, kind="stable", na_position="last")
    best = best.drop_duplicates(["ratio", "method", "reset_interval", "reset_ratio"])
    tried = table.groupby(["ratio", "method", "reset_interval", "reset_ratio"]).size()
    return [
        {
            "ratio": row.ratio,
            "method": row.method,
            "h": row.reset_interval,
            "rc1": row.reset_ratio,
            "val_acc": drawn(row.val_acc),
            "lr": row.lr,
            "tried": int(tried[row.ratio, row.method, row.reset_interval, row.reset_ratio]),
        }
        for row in best.sort_values(["ratio", "method", "reset_interval", "reset_ratio"]).itertuples()
    ]


def frame(rows: Sequence[ConfigurationRow]) -> "pd.DataFrame":
    """The virtual configurations that have a finished run, compressed methods only."""
    import pandas as pd

    columns = ["method", "ratio", *AXES, "chosen", "n", "diverged"]
    kept = [r for r in rows if r.rung == "virtual" and r.n and has_ratio(r.method)]
    numbers = dict.fromkeys([name for name in AXES if name not in TEXTS], "float64")
    table = pd.DataFrame([[getattr(r, name) for name in columns] for r in kept], columns=columns).astype(numbers)
    return table.assign(maximise=[r.scale.maximise for r in kept], metric=[r.scale.name for r in kept])


def _axes(table: "pd.DataFrame") -> dict[str, Any]:
    axes, places = [], {}
    titles = {name: title for name, title in AXES.items() if name not in KNOBS or table[name].nunique() > 1}
    titles["val_acc"] = titles["val_acc"].replace("accuracy", table["metric"].iloc[0])
    for name, title in titles.items():
        values, words = (table[name], None) if name not in TEXTS else _numbered(table[name])
        scale = _scale(values, linear=name in LINEAR)
        places[name] = column(scale)
        axes.append({"name": name, "title": title, "ticks": _ticks(values, scale, words)})
    lines = [
        {
            "method": row.method,
            "places": [places[name][k] for name in titles],
            "text": _text(row),
            "val_acc": drawn(row.val_acc),
            "chosen": bool(row.chosen),
            "diverged": row.diverged == row.n,
        }
        for k, row in enumerate(table.itertuples())
    ]
    return {"axes": axes, "lines": lines}


def _numbered(texts: "pd.Series") -> tuple["pd.Series", dict[float, str]]:
    """Texts as numbers, evenly spaced in alphabetical order, and what each number stands for."""
    words = {float(k): text for k, text in enumerate(sorted(set(texts.dropna())))}
    return texts.map({text: k for k, text in words.items()}).astype("float64"), words


def _scale(values: "pd.Series", linear: bool) -> "pd.Series":
    """Places from 0 to 1 on the axis; infinity stands at its end, alone, and a single value in the middle."""
    import numpy as np

    infinite = np.isinf(values)
    known = values.mask(infinite)
    scaled = known if linear else np.log2(known)
    low, high = scaled.min(), scaled.max()
    places = (scaled - low) / (high - low) if high > low else scaled * 0 + 0.5
    if infinite.any() and known.notna().any():
        places = places * 0.85  # what infinity is apart from the largest finite value
    return places.mask(infinite, 1.0)


def _ticks(values: "pd.Series", places: "pd.Series", words: Mapping[float, str] | None = None) -> list[dict[str, Any]]:
    """Some of the values themselves, or what they stand for, at most TICKS, none on top of another."""
    found: list[dict[str, Any]] = []
    pairs = sorted({(place, value) for place, value in zip(places, values, strict=True) if not math.isnan(place)})
    for place, value in pairs:
        if not found or place - found[-1]["place"] >= 1 / TICKS or place == 1.0:
            if found and place == 1.0 and place - found[-1]["place"] < 0.5 / TICKS:
                found.pop()
            text = words[value] if words else "∞" if math.isinf(value) else number(float(f"{value:.3g}"))
            found.append({"place": drawn(place), "text": text})
    return found


def _text(row: Any) -> str:
    """The configuration in words."""
    knobs = [
        f"{title} {'∞' if math.isinf(value) else number(float(f'{value:.4g}'))}"
        for name, title in AXES.items()
        if name not in ("val_acc", *TEXTS) and not math.isnan(value := getattr(row, name))
    ]
    words = [
        text for name in TEXTS if isinstance(text := getattr(row, name), str) and text != getattr(USUAL_KNOBS, name)
    ]
    return ", ".join([*words, *knobs])
