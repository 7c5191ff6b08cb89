"""The README says what was measured, and nothing else."""

from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.core.errors import Corrupt, UsageError
from cloudshift_lab.sim.bench.claims import (
    BEGIN,
    CLAIMS,
    END,
    claims_table,
    command,
    main,
    read_results,
    rewritten,
)
from cloudshift_lab.sim.bench.main import BENCHES
from cloudshift_lab.sim.bench.rows import Machine, Result, at_most, row

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "bench" / "results"


def result(bench, **changes):
    names = {
        name
        for claim in CLAIMS
        if claim.bench == bench
        for name in (claim.row, *(other for _, other in claim.others))
    }
    rows = tuple(row(name, 7.0, "ms", goal=at_most(5.0)) for name in sorted(names))
    sound = Result(
        bench=bench, size="full", command="c", date="2026-01-01 10:00 UTC", commit="abc123",
        machine=Machine("A CPU", 2, 2**30, 0.1, "Linux"), versions={"torch": "2.13"}, seconds=1.0,
        rows=rows,
    )  # fmt: skip
    return msgspec.structs.replace(sound, **changes)


@pytest.fixture
def recorded(tmp_path):
    for bench in BENCHES:
        (tmp_path / f"{bench}.json").write_bytes(msgspec.json.encode(result(bench)))
    return tmp_path


def test_the_readme_says_what_the_recorded_results_say():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert rewritten(readme, claims_table(read_results(RECORDED))) == readme, "run: make claims"


def test_the_table_is_written_between_the_markers_and_drift_is_noticed(recorded):
    readme = recorded / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    options = ["--readme", str(readme), "--results", str(recorded)]
    assert main([*options, "--check"]) == 1
    assert main(options) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n") and text.endswith("\n\nafter\n") and "old" not in text
    assert "abc123" in text and "| How long training stands still for a save | 7 ms" in text
    assert main([*options, "--check"]) == 0
    readme.write_text(text.replace("7 ms", "6 ms"))
    assert main([*options, "--check"]) == 1


def test_a_missed_goal_is_said(recorded):
    table = claims_table(read_results(recorded))
    assert table.count("**goal missed**") == sum(claim.bench in BENCHES for claim in CLAIMS)
    assert "≤ 5 ms" in table


def test_no_claim_without_a_full_result_that_has_its_row(recorded):
    (recorded / "codec.json").write_bytes(msgspec.json.encode(result("codec", size="tiny")))
    with pytest.raises(UsageError, match="record a full one"):
        read_results(recorded)
    (recorded / "codec.json").write_bytes(msgspec.json.encode(result("codec", rows=())))
    with pytest.raises(Corrupt, match="has no row 'fp32 AdamW"):
        claims_table(read_results(recorded))


def test_what_was_not_measured_is_said_and_a_figure_of_it_in_the_readme_is_drift(recorded):
    readme, kept = recorded / "README.md", (recorded / "codec.json").read_bytes()
    readme.write_text(f"{BEGIN}{END}")
    options = ["--readme", str(readme), "--results", str(recorded)]
    assert main(options) == 0
    (recorded / "codec.json").unlink()
    assert main([*options, "--check"]) == 1
    assert main(options) == 0
    assert "| ... pure bf16 | not measured yet |" in readme.read_text()
    for bench in ("codec", "demo", "sim", "sim-no-fencing", "chaos"):
        assert f"`{command(bench)}`" in readme.read_text().split("Not measured yet: ")[1]
    (recorded / "codec.json").write_bytes(kept)
    assert main([*options, "--check"]) == 1


def test_no_result_is_recorded_that_no_claim_rests_on():
    assert {path.stem for path in RECORDED.glob("*.json")} <= {claim.bench for claim in CLAIMS}


def test_every_table_of_figures_in_the_readme_is_generated():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    head, tail = readme.split(BEGIN)[0], readme.split(END)[1]
    assert "|---|" not in head and "|---|" not in tail, "record it, claim it in CLAIMS"


@pytest.mark.parametrize("readme", ["no markers", f"{BEGIN}{BEGIN}{END}"])
def test_a_readme_without_markers_is_refused(readme):
    with pytest.raises(UsageError, match="needs one line"):
        rewritten(readme, "table")
