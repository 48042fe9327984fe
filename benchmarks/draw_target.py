"""Draws the rows of `time_to_target.py`: held-out loss against seconds, measured (solid) and predicted before (dashed).

    python benchmarks/draw_target.py benchmarks/results/time_to_target_cpu.csv --out docs/time_to_target_cpu.svg

Needs vl-convert-python, which otherwise only building the package needs.
"""

import argparse
from pathlib import Path

import pandas as pd
import vl_convert

COLOURS = ["#000000", "#7f7f7f", "#bcbd22", "#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7"]


def chart(rows: pd.DataFrame) -> dict[str, object]:
    """The Vega-Lite specification."""
    first = rows.iloc[0]
    known = rows[["method", "kind", "seconds", "val_loss"]].round(4)
    return {
        "title": f"{first['task']}, {first['workers']} workers over {first['rate']}, {first['hardware']}",
        "width": 640,
        "height": 380,
        "background": "white",
        "data": {"values": known.to_dict("records")},
        "mark": {"type": "line", "point": {"size": 18}, "clip": True},
        "encoding": {
            "x": {"field": "seconds", "type": "quantitative", "title": "seconds of training"},
            "y": {
                "field": "val_loss",
                "type": "quantitative",
                "title": "held-out loss, nats",
                "scale": {"zero": False},
            },
            "color": {"field": "method", "type": "nominal", "sort": None, "scale": {"range": COLOURS}},
            "strokeDash": {"field": "kind", "type": "nominal", "sort": ["measured", "predicted"]},
        },
    }


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.write_text(vl_convert.vegalite_to_svg(chart(pd.read_csv(options.rows))))


if __name__ == "__main__":
    main()
