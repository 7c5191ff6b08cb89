"""Whether every kernel log line is read as what it is."""

from __future__ import annotations

from pathlib import Path

from cloudshift_lab.health.xid import find_xids, parse_xid
from cloudshift_lab.health.xid_table import ASKS
from cloudshift_lab.sim.bench.rows import Row, exactly, row
from cloudshift_lab.sim.health.data import read_csv

_BUCKETS = {
    "RESTART_APP": {"restart the run"}, "IGNORE": {"none", "watch"},
    "RESET_GPU": {"reset the GPU", "drain and reset the GPU"}, "RESTART_BM": {"reboot the node"},
    "RESTART_VM": {"reboot the node"}, "CONTACT_SUPPORT": {"contact support"},
}  # fmt: skip
"""The catalogue's first resolution, and what of ours means the same; workflows are not listed."""


def evaluate(folder: Path) -> tuple[Row, ...]:
    """Rows for the report; of the catalogue only if the folder has one."""
    lines = read_csv(folder / "xid_log_lines.csv", ("line", "expected_xid", "expected_pci"))
    wrong = [each for each in lines if not _is_right(each)]
    share = 1 - len(wrong) / len(lines) if lines else float("nan")
    shown = "; ".join(each["line"][:80] for each in wrong[:3])
    rows = [
        row("XID: lines read right", share, "share", goal=exactly(1.0),
            note=f"code and PCI address of {len(lines)} lines; wrong: {shown or 'none'}")
    ]  # fmt: skip
    catalogue = folder / "xid_catalog.csv"
    if catalogue.exists():
        rows.append(_table_row(catalogue))
    return tuple(rows)


def _is_right(case: dict[str, str]) -> bool:
    xid = parse_xid(case["line"])
    expected = case["expected_xid"].strip()
    if not expected:
        return xid is None
    if xid is None or xid.code != int(expected):
        return False
    found = find_xids([(0.0, case["line"])], "node")
    return xid.pci == case["expected_pci"].strip() and len(found) == 1


def _table_row(catalogue: Path) -> Row:
    rows = read_csv(catalogue, ("xid", "description", "immediate_resolution"))
    used = [
        each for each in rows
        if each["immediate_resolution"] in _BUCKETS and each["description"] != "Unused"
    ]  # fmt: skip
    other = [
        each["xid"] for each in used
        if int(each["xid"]) not in ASKS
        or ASKS[int(each["xid"])].action not in _BUCKETS[each["immediate_resolution"]]
    ]  # fmt: skip
    return row(
        "XID: our table asks what the catalogue asks", 1 - len(other) / max(1, len(used)), "share",
        note=f"{len(used)} codes in use with a plain resolution; others: "
        f"{', '.join(other) or 'none'}",
    )  # fmt: skip
