"""Receipts and notices, from the verbs to what is shown and written."""

from pathlib import Path

import msgspec
import pytest

from cloudshift_lab.core.errors import Corrupt
from cloudshift_lab.core.plan import Decision
from cloudshift_lab.core.wire import from_json
from cloudshift_lab.lab.cli import main
from cloudshift_lab.lab.render.records import receipts_sheet
from cloudshift_lab.lab.render.sheet import sheet_html, sheet_text
from cloudshift_lab.migration import (
    Decided,
    EffectDone,
    Receipt,
    check_chain,
    fold,
    make_receipt,
    with_digest,
)

NOW = 1_764_000_000.0


@pytest.fixture
def make_receipts(make_move):
    """A chain of receipts of moves that went through."""

    def make(count: int) -> tuple[Receipt, ...]:
        found: list[Receipt] = []
        for number in range(1, count + 1):
            plan = with_digest(
                msgspec.structs.replace(make_move().plan, migration_id=f"mig-{number}")
            )
            decision = Decision("d", plan.digest, "approve", "ada (notebook)", NOW)
            done = [
                EffectDone(name, NOW + 1 + at) for at, name in enumerate(("provision", "precopy"))
            ]
            done += [
                EffectDone("drain", NOW + 3, step=120, manifest_digest="m" * 64, step_at=NOW + 3),
                EffectDone("copy", NOW + 4, num_bytes=70_000_000),
                EffectDone("verify", NOW + 5),
                EffectDone("commit", NOW + 6, seq=4),
                EffectDone("go", NOW + 7, step_at=NOW + 7),
                EffectDone("retire", NOW + 8),
            ]
            saga = fold(plan, [Decided(decision, NOW), *done])
            previous = {"previous": found[-1].digest} if found else {}
            found.append(make_receipt(saga, at=NOW + 8, actual_micro_usd=6_600, **previous))
        return tuple(found)

    return make


@pytest.fixture
def call(service, capsys):
    """Runs a command line against the scripted conductor."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main(words)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def test_a_receipt_shows_forecast_beside_actual_and_its_chain(make_receipts) -> None:
    receipts = make_receipts(2)
    sheet = receipts_sheet("first", receipts, "%cloudshift")
    text, html = sheet_text(sheet), sheet_html(sheet)
    for said in (
        "2 receipts of first, chain checked", "mig-1: aws-sim:us-east-1 to gcp-sim:us-central1",
        "source retired", "approved by ada (notebook)", "step 120 by copy bytes", "2.6 s", "4.0 s",
        "+54%", "61.2 MB", "70.0 MB", "$0.0055", "$0.0066", "+20%", receipts[0].digest[:12],
        receipts[1].digest[:12], "the first", "m" * 12,
    ):  # fmt: skip
        assert said in text
    assert receipts[0].digest[:12] in html
    assert text.count(receipts[0].digest[:12]) == 2  # its own, and named by the one after


def test_an_altered_or_missing_receipt_is_named_instead_of_shown(make_receipts) -> None:
    receipts = make_receipts(3)
    altered = msgspec.structs.replace(receipts[1], actual_micro_usd=1)
    with pytest.raises(Corrupt, match="'mig-2' was altered"):
        receipts_sheet("first", (receipts[0], altered, receipts[2]), "%cloudshift")
    with pytest.raises(Corrupt, match="one is missing"):
        receipts_sheet("first", (receipts[0], receipts[2]), "%cloudshift")


def test_the_verb_shows_the_receipts_of_a_run(call, service, make_run, make_receipts) -> None:
    service.views, service.chain = [make_run()], make_receipts(1)
    status, out, _ = call("receipt", "first")
    assert status == 0
    assert "1 receipt of first" in out


def test_a_run_without_moves_says_what_writes_a_receipt(call, service, make_run) -> None:
    service.views = [make_run()]
    status, out, _ = call("receipt")
    assert (status, "first has no receipts" in out) == (0, True)
    assert "cloudshift migrate first --to TARGET" in out


def test_exported_receipts_are_whole_and_can_be_checked_by_anybody(
    call, service, make_run, make_receipts, tmp_path: Path
) -> None:
    service.views, service.chain = [make_run()], make_receipts(2)
    path = tmp_path / "receipts.json"
    assert call("receipt", "first", "--export", str(path))[0] == 0
    read = from_json(path.read_bytes(), tuple[Receipt, ...])
    assert read == service.chain
    assert check_chain(read) == service.chain[-1].digest


def test_an_export_never_overwrites(call, service, make_run, tmp_path: Path) -> None:
    service.views = [make_run()]
    path = tmp_path / "receipts.json"
    path.write_text("mine")
    status, _, err = call("receipt", "first", "--export", str(path))
    assert (status, "exists already; give --export another path" in err) == (2, True)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "within_s"), [("first 30", 30.0), ("first 30s", 30.0), ("first 2m", 120.0), ("30", 30)]
)
def test_a_notice_says_that_it_is_simulated_and_what_will_be_saved(
    call, service, make_run, line: str, within_s: float
) -> None:
    service.views = [make_run()]
    status, out, _ = call("notice", *line.split())
    assert status == 0
    for said in ("simulated", "typed by", "no provider said so", "save the newest step", "no step",
                 "30 s are enough"):  # fmt: skip
        assert said in out
    assert [(ask.within_s, ask.side) for ask in service.notices] == [(within_s, "source")]


def test_a_notice_may_be_the_targets(call, service, make_run) -> None:
    service.views = [make_run()]
    assert call("notice", "first", "120", "--side", "target")[0] == 0
    assert service.notices[0].side == "target"


@pytest.mark.parametrize("words", [("first", "soon"), ("first",), ()])
def test_a_notice_without_a_time_says_what_to_type(call, service, make_run, words) -> None:
    service.views = [make_run()]
    status, _, err = call("notice", *words)
    assert (status, "notice RUN 30" in err) == (2, True)
    assert service.notices == []


def test_migrate_carries_every_wish_to_the_conductor(call, service, make_run) -> None:
    service.views = [make_run()]
    words = (
        "migrate first --to gcp-sim,az-sim --closing replay --rehearse 4 --min-nodes 2 "
        "--approvals 2 --limit 0.5 --carrier push --expires 60"
    )
    assert call(*words.split())[0] == 0
    (ask,) = service.asks
    assert (ask.to, ask.elsewhere, ask.missing_nodes) == ("gcp-sim", ("az-sim",), "elsewhere")
    assert (ask.closing, ask.rehearse, ask.min_nodes) == ("replay", 4, 2)
    assert (ask.approvals, ask.limit_micro_usd) == (2, 500_000)
    assert (ask.carrier, ask.expires_s) == ("push", 60.0)


@pytest.mark.parametrize("policy", ["roll-back", "wait", "shrink"])
def test_other_places_are_refused_with_a_policy_that_would_never_try_them(
    call, service, make_run, policy: str
) -> None:
    service.views = [make_run()]
    words = f"migrate first --to gcp-sim,az-sim --missing-nodes {policy}"
    status, _, err = call(*words.split())
    assert status == 2
    assert f"with missing nodes '{policy}' only the first of gcp-sim, az-sim would be tried" in err
    assert "choose 'elsewhere'" in err
    assert service.asks == []


def test_one_place_and_no_wish_leave_the_choices_to_the_conductor(call, service, make_run) -> None:
    service.views = [make_run()]
    assert call("migrate", "--to", "gcp-sim")[0] == 0
    (ask,) = service.asks
    assert (ask.elsewhere, ask.missing_nodes, ask.closing) == ((), "roll-back", "auto")
    assert (ask.rehearse, ask.approvals, ask.limit_micro_usd, ask.expires_s) == (None,) * 4
