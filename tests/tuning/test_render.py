"""A comparison reads the same from any order of rows, in every format, and keeps to what may be shown."""

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd
import pytest

from cser_ray.methods import has_ratio
from tests.tuning.rows_factory import NO_SYNC, SGD, frame, grid, run
from tuning.compare.compare import compare, configurations
from tuning.compare.render import FORMATS, render
from tuning.study.study import Study


def study_of_everything() -> pd.DataFrame:
    """All methods at two ratios, with times and hosts, an unchosen real run, and worse rates on the screen."""
    rows = [*SGD, *NO_SYNC]
    for at, ratio in enumerate((16.0, 256.0)):
        for i, method in enumerate(m for m in Study().methods if has_ratio(m)):
            rows += grid(method, [60.0 - 5 * at + i / 3, 60.4 - 5 * at + i / 3, 59.5 - 5 * at], ratio=ratio)
    rows.append(run("csea", lr=0.2, rung="distributed", stage="real", run_id="real", test_acc=12.3456))
    return frame([replace(row, test_acc=12.3456, test_loss=7.6543) if row.val_loss == 1.9 else row for row in rows])


def test_test_metrics_of_unchosen_configurations_appear_nowhere() -> None:
    """12.3456 % and 7.6543 nats belong to configurations that were not chosen: no format of any output has them."""
    runs = study_of_everything()
    assert (runs["test_acc"] == 12.3456).sum() > 10
    for what in (compare(runs), configurations(runs)):
        for format in FORMATS:
            text = render(what, format)
            assert not any(number in text for number in ("12.3", "7.65", "7.654"))


def test_csv_does_not_depend_on_the_order_of_rows_nor_on_times_and_hosts() -> None:
    """Equal studies give byte-equal files, in whatever order and on whatever host they ran."""
    runs = study_of_everything()
    elsewhere = runs.assign(wall_s=9.0, comm_s=8.0, node="elsewhere", started_at=datetime(2030, 1, 1, tzinfo=UTC))
    text = render(compare(runs), "csv")
    for seed in range(3):
        assert render(compare(elsewhere.sample(frac=1, random_state=seed)), "csv") == text
    table = list(csv.DictReader(io.StringIO(text)))
    assert len(table) == 2 + 2 * 8
    assert table[0]["method"] == "sgd"
    assert table[-1]["ratio"] == "inf"
    assert not {"wall_s", "node", "started_at"} & table[0].keys()


def test_json_is_strict_and_whole() -> None:
    """Infinity is "inf", and cells, references, twins, verdicts, notes and problems are all there."""

    def refuse(token: str) -> float:
        raise AssertionError(f"{token} is no JSON")

    document = json.loads(render(compare(study_of_everything()), "json"), parse_constant=refuse)
    assert document["cells"][-1]["ratio"] == "inf"
    assert {"references", "twins", "verdicts", "notes", "problems"} <= document.keys()


def test_plain_text_keeps_to_120_columns() -> None:
    """Eight methods with marks and long names: tables that are too wide go on in a second block."""
    runs = study_of_everything()
    shaky = runs["method"].isin(["cser", "cser-pl", "csea", "qsparse"]) & (runs["repeat"] == 1)
    runs.loc[shaky, "diverged"] = True
    text = render(compare(runs))
    assert max(map(len, (text + render(configurations(runs))).splitlines())) <= 120
    table = text[text.index("Test accuracy, %") : text.index("References")].splitlines()
    heads = [line.split()[1:] for line in table if line.startswith("  R_C")]
    assert len(heads) == 2
    assert [*heads[0], *heads[1]] == [method for method in Study().methods if has_ratio(method)]


def test_markdown_holds_the_same_tables() -> None:
    """Each plain table is a GitHub table of the same title, with as many cells in its rule as in its head."""
    comparison = compare(frame(grid("local-sgd", [60.0, 60.5, 59.5]), grid("csea", [65.0, 65.6, 64.9])))
    lines = render(comparison, "markdown").splitlines()
    head = lines.index("### Test accuracy, %") + 2
    assert lines[head] == "| R_C | local-sgd | csea |"
    assert lines[head + 1] == "| :-- | --: | --: |"
    assert lines[head + 2] == "| 16 | 60.0±.5 | 65.2±.4\\* |"


def test_an_unknown_format_is_refused() -> None:
    """The formats there are are named."""
    with pytest.raises(ValueError, match="'pdf' is not known; take one of table, csv, json, markdown"):
        render(compare(frame(run())), "pdf")
