"""The page as one HTML file: template, style, charts and data put together, under a policy that allows nothing else.

The live page and the report are the same file but for one element: the report holds its data, the live page the address
to fetch it from, relative, so that it works behind any path.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("vega.js", "elements.js", "draw.js", "charts.js", "charts_results.js", "charts_curves.js", "charts_structures.js",
           "charts_costs.js", "decision.js", "take_home.js", "runs.js", "state.js", "app.js")  # fmt: skip
"""Files of `dashboards/page/`, in the order in which they run. `vega.js` is made when the package is installed."""
STYLE = "page.css"


@dataclass(frozen=True)
class Page:
    """A page and the content-security policy that it works under, which also stands in the page itself."""

    html: bytes
    policy: str


def report_page(data: Mapping[str, Any]) -> Page:
    """The page with its data inside: needs no server, no network and no other file."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "<" as a JSON escape: no trial's text can end the element that holds it
    return _page(f'<script type="application/json" id="data">{text.replace("<", chr(92) + "u003c")}</script>', "'none'")


def live_page(address: str = "data.json") -> Page:
    """The page that fetches its data, again and again, from `address` beside it."""
    return _page(f'<meta name="live" content="{address}">', "'self'")


def _page(data: str, connect: str) -> Page:
    style, scripts = _part(STYLE), [_script(name) for name in SCRIPTS]
    policy = "; ".join(
        (
            "default-src 'none'",
            "script-src " + " ".join(map(_hash, scripts)),
            "style-src " + _hash(style),
            f"connect-src {connect}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    html = _part("page.html")
    parts = {
        "policy": f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        "style": f"<style>{style}</style>",
        "data": data,
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    for name, part in parts.items():
        before, _, after = html.partition(f"<!-- {name} -->")
        html = before + part + after
    return Page(html.encode(), policy)


@cache
def _part(name: str) -> str:
    try:
        return (files("dashboards") / "page" / name).read_text("utf-8")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"dashboards/page/{name} is missing: it is made when the package is installed; run `pip install .` again"
        ) from error


def _script(name: str) -> str:
    """A file's text, in which no string ends the script element."""
    return _part(name).replace("</script", "<\\/script")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
