"""The REST routes: who may ask, what is passed on, and what is said when nobody answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from jupyter_server.auth.identity import User
from tornado.httpclient import HTTPClientError

API = ("cloudshift", "api")


def decision(**changed: str) -> str:
    body = {
        "decision_id": "decision-1", "plan_digest": "digest-1", "verdict": "approve", "by": "test",
    }  # fmt: skip
    return json.dumps(body | changed)


@pytest.mark.parametrize("path", ["runs", "migrations", "doctor", "health", "targets"])
async def test_a_stranger_is_refused(jp_fetch: Any, conductor: Any, path: str) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*API, path, headers={"Authorization": ""})
    assert refused.value.code == 403


async def test_a_strangers_decision_is_refused_and_reaches_nobody(
    jp_fetch: Any, conductor: Any
) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(
            *API, "migrations", "mig-1", "decision",
            method="POST", body=decision(), headers={"Authorization": ""},
        )  # fmt: skip
    assert refused.value.code == 403
    assert conductor.service.decisions == []


async def test_a_cookie_alone_cannot_decide_without_the_xsrf_token(
    jp_fetch: Any, jp_serverapp: Any, conductor: Any
) -> None:
    first = await jp_fetch(*API, "runs")
    cookies = first.headers.get_list("Set-Cookie")
    assert cookies, "the first answer logs the browser in"
    pairs = "; ".join(cookie.split(";")[0] for cookie in cookies)
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(
            *API, "migrations", "mig-1", "decision", method="POST", body=decision(),
            headers={"Authorization": "", "Cookie": pairs},
        )  # fmt: skip
    assert refused.value.code == 403
    assert conductor.service.decisions == []


async def test_runs_come_from_the_conductor_unchanged(jp_fetch: Any, conductor: Any) -> None:
    answer = await jp_fetch(*API, "runs")
    (run,) = json.loads(answer.body)
    assert run["run_id"] == "run-1"
    assert run["simulated"] is True
    assert answer.headers["Content-Type"] == "application/json"


async def test_the_conductors_token_never_reaches_the_browser(
    jp_fetch: Any, conductor: Any
) -> None:
    for path in ("runs", "migrations", "doctor", "health"):
        answer = await jp_fetch(*API, path)
        assert b"scripted-token" not in answer.body
        assert "scripted-token" not in str(list(answer.headers.get_all()))


async def test_a_query_is_passed_on(jp_fetch: Any, conductor: Any) -> None:
    answer = await jp_fetch(*API, "runs", "run-1", "series", params={"points": "100"})
    assert len(json.loads(answer.body)["loss"]) == conductor.service.steps


async def test_a_decision_arrives_bound_to_the_plan_that_was_shown(
    jp_fetch: Any, conductor: Any
) -> None:
    answer = await jp_fetch(*API, "migrations", "mig-1", "decision", method="POST", body=decision())
    assert json.loads(answer.body)["phase"] == "approved"
    (arrived,) = conductor.service.decisions
    assert (arrived.plan_digest, arrived.verdict) == ("digest-1", "approve")


@pytest.mark.parametrize(
    ("sent", "recorded"),
    [
        ("side panel", "ada (side panel)"),
        ("eve (approval widget)", "ada (approval widget)"),
        ("eve (", "ada (browser)"),
        ("", "ada (browser)"),
        ("x" * 50_000, "ada (browser)"),
    ],
)
async def test_who_decided_is_what_the_login_says_and_not_the_page(
    jp_fetch: Any,
    jp_serverapp: Any,
    conductor: Any,
    monkeypatch: pytest.MonkeyPatch,
    sent: str,
    recorded: str,
) -> None:
    ada = User(username="ada", name="Ada Lovelace")
    provider = jp_serverapp.identity_provider
    monkeypatch.setattr(provider, "generate_anonymous_user", lambda handler: ada)
    await jp_fetch(
        *API, "migrations", "mig-1", "decision", method="POST", body=decision(by=sent)
    )  # fmt: skip
    (arrived,) = conductor.service.decisions
    assert arrived.by == recorded


async def test_who_logs_in_with_the_servers_token_decides_as_its_owner(
    jp_fetch: Any, conductor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    await jp_fetch(
        *API, "migrations", "mig-1", "decision", method="POST", body=decision(by="toast")
    )  # fmt: skip
    (arrived,) = conductor.service.decisions
    assert arrived.by == "grace (toast)"


@pytest.mark.parametrize("body", ["{", "[]", '{"verdict": "maybe"}', ""])
async def test_a_decision_that_cannot_be_read_is_refused_and_reaches_nobody(
    jp_fetch: Any, conductor: Any, body: str
) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*API, "migrations", "mig-1", "decision", method="POST", body=body)
    assert refused.value.code == 400
    assert refused.value.response is not None
    assert json.loads(refused.value.response.body)["kind"] == "UsageError"
    assert conductor.service.decisions == []


async def test_a_stale_decision_comes_back_as_409_with_what_to_do(
    jp_fetch: Any, conductor: Any
) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(
            *API, "migrations", "mig-1", "decision",
            method="POST", body=decision(plan_digest="older"),
        )  # fmt: skip
    assert refused.value.code == 409
    assert refused.value.response is not None
    problem = json.loads(refused.value.response.body)
    assert problem["kind"] == "StaleDecision"
    assert problem["action"] == "ask"


async def test_an_unknown_run_is_404_with_the_known_ones(jp_fetch: Any, conductor: Any) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*API, "runs", "nope")
    assert refused.value.code == 404
    assert refused.value.response is not None
    assert "choose: first" in json.loads(refused.value.response.body)["message"]


@pytest.mark.parametrize("path", ["shutdown", "sql", "ingest", "runs/../shutdown", "changes"])
async def test_only_named_routes_are_passed_on(jp_fetch: Any, conductor: Any, path: str) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*API, path, method="POST", body="{}")
    assert refused.value.code in (404, 405)


async def test_an_absent_conductor_is_503_and_says_since_when(jp_fetch: Any) -> None:
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*API, "runs")
    assert refused.value.code == 503
    assert refused.value.response is not None
    problem = json.loads(refused.value.response.body)
    assert problem["kind"] == "Unavailable"
    assert "offline since" in problem["message"]
    assert problem["since"] <= time.time()


async def test_looking_never_starts_a_conductor(jp_fetch: Any, state_dir: Any) -> None:
    with pytest.raises(HTTPClientError):
        await jp_fetch(*API, "runs")
    assert not (state_dir / "daemon.json").exists()
    assert not (state_dir / "conductor.log").exists()


async def test_a_conductor_that_went_away_is_found_again_at_its_new_address(
    jp_fetch: Any, start_conductor: Callable[[], Any]
) -> None:
    first = start_conductor()
    await jp_fetch(*API, "runs")
    first.close()
    with pytest.raises(HTTPClientError) as refused:
        await jp_fetch(*API, "runs")
    assert refused.value.code == 503
    start_conductor()
    answer = await jp_fetch(*API, "runs")
    assert answer.code == 200
