"""Each cell's configuration to take home: its settings as YAML and the commands, as `cser-ray best` gives them."""

from typing import Any

from tuning.compare.comparison import Comparison
from tuning.compare.selection import Chosen
from tuning.take_home.best import best_of


def best(chosen: Chosen, comparison: Comparison, results: str) -> list[dict[str, Any]]:
    """An entry a cell; one that cannot be handed over says why."""
    found = []
    for method, ratio in chosen.choices:
        entry: dict[str, Any] = {"method": method, "ratio": ratio}
        try:
            taken = best_of(chosen, comparison, ratio, method)
            entry |= {"settings": taken.settings_file(), "report": taken.report(results, None)}
        except ValueError as error:
            entry["why_not"] = str(error)
        found.append(entry)
    return found
