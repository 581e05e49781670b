"""The management site from outside: what an operator sees, may do, and may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.books import check_books, rows, settle
from tests.support.lives import whole_life
from tests.support.process import Reply, Serve, Starter, starter, wait_for

TOKEN = "token-of-alice-0123456789"
OTHER_TOKEN = "token-of-bob-9876543210"
TOKENS = {"PAYFLOW_MANAGEMENT__TOKENS__ALICE": TOKEN, "PAYFLOW_MANAGEMENT__TOKENS__BOB": OTHER_TOKEN}
ALLOWED = TOKENS | {"PAYFLOW_MANAGEMENT__ALLOW_ACTIONS": "true"}
# A breaker that a restart of the broker opened looks again after a second instead of thirty.
SOON_AGAIN = {"breaker__kafka-publisher__wait_duration_in_open_state": "1s"}
ACTORS = {"gauges", "management", "broker", "outbox", "publisher", "consumer", "intake"}
SECRET = "topsecret"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """One process for the tests that only look."""
    with starter(tmp_path_factory.mktemp("management")) as start:
        running = start(env=TOKENS).ready()
        running.event("consumer.connected")
        yield running


def act(serve: Serve, actor_id: str, action: str, body: object = None, *, token: str | None = TOKEN) -> Reply:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    body = {"reason": "a test"} if body is None else body
    return serve.management.request("POST", f"/debug/actors/{actor_id}/{action}", body, **headers)


def refusal(reply: Reply) -> tuple[int, str]:
    assert reply.headers["content-type"].startswith("application/problem+json")
    problem = reply.json()
    assert problem["status"] == reply.status
    assert problem["detail"]
    return reply.status, problem["code"]


def audit(serve: Serve) -> list[Any]:
    return rows(serve.data_dir / "payments.db", "SELECT actor, action, target, reason, detail FROM audit ORDER BY id")


def nodes(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {tree["id"]: tree}
    for child in tree["children"]:
        found |= nodes(child)
    return found


def state_of(serve: Serve, actor_id: str) -> str:
    return str(serve.management.get(f"/debug/actors/{actor_id}").json()["actor"]["state"])


# ------------------------------------------------------------------ looking
def test_the_tree_as_json_shows_every_actor_with_its_mailbox(site: Serve) -> None:
    answer = site.management.get("/debug/actors")

    assert answer.headers["cache-control"] == "no-store"
    tree = nodes(answer.json()["tree"])
    assert tree.keys() == ACTORS | {"root", "telemetry", "pipeline"}
    for name in ACTORS:
        assert (tree[name]["kind"], tree[name]["state"], tree[name]["instance"]) == ("actor", "running", 1)
        assert tree[name]["mailbox"]["capacity"] > 0
    assert tree["root"]["strategy"] == "one_for_one"


def test_the_tree_as_text_is_a_drawing(site: Serve) -> None:
    lines = site.management.get("/debug/actors?format=text").body.decode().splitlines()

    assert lines[0].startswith("root ")
    assert {line.split()[1] for line in lines[1:] if "─" in line} >= {"telemetry", "management", "pipeline"}
    assert all(any(name in line for line in lines) for name in ACTORS)


@pytest.mark.parametrize("actor_id", sorted(ACTORS))
def test_every_actor_shows_state_mailbox_and_stack(site: Serve, actor_id: str) -> None:
    shown = site.management.get(f"/debug/actors/{actor_id}").json()
    assert shown["actor"]["id"] == actor_id
    assert shown["state"]["value"] is None or isinstance(shown["state"]["value"], dict)
    assert site.management.get(f"/debug/actors/{actor_id}/mailbox").json()["stats"]["capacity"] > 0
    frames = site.management.get(f"/debug/actors/{actor_id}/stack").json()["frames"]
    assert any("mailbox.py" in frame for frame in frames)


def test_loop_and_dead_letters(site: Serve) -> None:
    assert site.management.get("/debug/loop").json()["loop"]["samples"] >= 0
    assert site.management.get("/debug/deadletters").json() == {"items": []}


def test_a_payments_journey_has_every_hop(site: Serve) -> None:
    log = whole_life(site.api)
    settle(site.data_dir)

    journey = site.management.get(f"/debug/journey/{log[0].payment()['id']}").json()

    assert (journey["status"], journey["version"], len(journey["events"])) == ("PARTIALLY_REFUNDED", 3, 3)
    for event in journey["events"]:
        assert event["outbox"] == "published"
        assert event["accepted_at"] <= event["published_at"] <= event["booked_at"]
        assert event["to_booked_s"] >= event["to_published_s"] >= 0
    assert [event["ledger_entry_at"] is not None for event in journey["events"]] == [False, True, True]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/debug/actors/nobody", 404),
        ("/debug/actors/pipeline", 404),
        ("/debug/actors/nobody/mailbox", 404),
        ("/debug/actors/nobody/stack", 404),
        ("/debug/journey/01900000-0000-7000-8000-000000000000", 404),
        ("/debug/journey/nothing", 404),
        ("/debug/nothing", 404),
        ("/circuit-breaker/nothing", 404),
        ("/debug/actors?format=xml", 400),
        ("/debug/actors/outbox/mailbox?limit=0", 400),
        ("/debug/deadletters?limit=x", 400),
        ("/debug/actors/outbox/pause", 405),
    ],
)
def test_what_is_not_there_is_a_problem_document(site: Serve, path: str, status: int) -> None:
    assert refusal(site.management.get(path))[0] == status


def test_health_and_metrics_are_here_too(site: Serve) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/info", "/metrics", "/circuit-breaker/status"):
        assert site.management.get(path).status == 200, path
    assert (
        site.management.get("/circuit-breaker/kafka-publisher").json()
        == site.api.get("/circuit-breaker/kafka-publisher").json()
    )
    assert b"payflow_mailbox_depth" in site.management.get("/metrics").body


def test_nothing_of_it_is_on_the_port_of_the_api(site: Serve) -> None:
    for path in ("/debug/actors", "/debug/actors/outbox", "/debug/deadletters", "/debug/loop"):
        assert refusal(site.api.get(path)) == (404, "not-found")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    paused = site.api.request("POST", "/debug/actors/outbox/pause", {"reason": "x"}, **headers)
    assert refusal(paused) == (404, "not-found")


# ------------------------------------------------------------------ who may act
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1]])
def test_without_a_token_of_this_process_an_action_is_401(site: Serve, token: str | None) -> None:
    reply = act(site, "consumer", "pause", token=token)

    assert refusal(reply) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == "Bearer"


def test_actions_that_are_not_switched_on_are_403_also_for_a_token(site: Serve) -> None:
    assert refusal(act(site, "consumer", "pause")) == (403, "actions-off")
    assert state_of(site, "consumer") == "running"
    assert audit(site) == []


# ------------------------------------------------------------------ actions
@pytest.fixture(scope="module")
def switched_on(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """One process in which actions are on."""
    with starter(tmp_path_factory.mktemp("actions")) as start:
        yield start(env=ALLOWED, **SOON_AGAIN).ready()


@pytest.mark.parametrize(
    "body",
    [b"", b"{", {}, {"reason": ""}, {"reason": "  "}, {"reason": 1}, {"reason": "x" * 501}]
    + [{"reason": "x", "max_s": value} for value in (0, -1, 3601, "1")]
    + [{"reason": "x", "more": 1}],
)
def test_an_action_without_a_reason_or_with_a_wrong_body_is_422(switched_on: Serve, body: object) -> None:
    assert refusal(act(switched_on, "consumer", "pause", body))[0] == 422
    assert audit(switched_on) == []


def test_an_action_on_nobody_is_404_and_on_management_itself_409(switched_on: Serve) -> None:
    assert refusal(act(switched_on, "nobody", "pause"))[0] == 404
    assert refusal(act(switched_on, "pipeline", "restart"))[0] == 404
    assert refusal(act(switched_on, "consumer", "explode"))[0] == 404
    for action in ("pause", "restart"):
        assert refusal(act(switched_on, "management", action)) == (409, "not-possible")
    assert audit(switched_on) == []


def test_pause_resume_and_restart_work_and_are_audited(serve: Starter) -> None:
    running = serve(env=ALLOWED).ready()
    running.event("consumer.connected")

    assert act(running, "consumer", "pause", {"reason": "look", "max_s": 600}).json()["done"] is True
    assert state_of(running, "consumer") == "paused"
    assert running.api.get("/readyz").status == 503
    log = whole_life(running.api)
    assert rows(running.data_dir / "ledger.db", "SELECT * FROM inbox") == []
    assert "paused by alice" in running.management.get("/debug/actors?format=text").body.decode()
    assert act(running, "consumer", "resume", token=OTHER_TOKEN).status == 200
    settle(running.data_dir)
    assert act(running, "publisher", "restart", {"reason": "fresh"}).status == 200

    tree = nodes(running.management.get("/debug/actors").json()["tree"])
    assert (tree["publisher"]["instance"], tree["publisher"]["state"]) == (2, "running")
    assert tree["pipeline"]["restarts_in_window"] == 0, "an operator's wish is no crash"
    log += whole_life(running.api)
    settle(running.data_dir)
    check_books(log, running.data_dir)
    assert [row[:4] for row in audit(running)] == [
        ("alice", "pause", "consumer", "look"),
        ("bob", "resume", "consumer", "a test"),
        ("alice", "restart", "publisher", "fresh"),
    ]
    assert json.loads(audit(running)[0][4]) == {"max_s": 600}
    acted = [(event["action"], event["target"], event["by"]) for event in running.named("management.acted")]
    assert acted == [("pause", "consumer", "alice"), ("resume", "consumer", "bob"), ("restart", "publisher", "alice")]
    assert TOKEN not in running.text()
    assert OTHER_TOKEN not in running.text()
    assert running.stop() == 0


@pytest.mark.parametrize("actor_id", ["broker", "outbox", "publisher", "consumer", "intake", "gauges"])
def test_any_actor_can_be_restarted_under_traffic(switched_on: Serve, actor_id: str) -> None:
    log = whole_life(switched_on.api)

    assert act(switched_on, actor_id, "restart").status == 200

    switched_on.ready()
    log += whole_life(switched_on.api)
    settle(switched_on.data_dir)
    assert {event["outbox"] for event in shown_events(switched_on, log[-1].payment()["id"])} == {"published"}
    assert switched_on.named("actor.crashed") == []


def shown_events(serve: Serve, payment_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = serve.api.get(f"/payments/{payment_id}").json()["events"]
    return events


def test_a_pause_ends_by_itself(switched_on: Serve) -> None:
    assert act(switched_on, "gauges", "pause", {"reason": "short", "max_s": 0.05}).status == 200

    wait_for(lambda: state_of(switched_on, "gauges") == "running", "the pause is over")


# ------------------------------------------------------------------ a paused outbox
@contextmanager
def posting(serve: Serve, key: str) -> Iterator[Any]:
    """A payment on its way in another thread, while the block runs."""
    body = {"merchant_id": SECRET, "amount": 1, "currency": "EUR", "description": SECRET, "metadata": {"k": SECRET}}
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(lambda: serve.api.post("/payments", body, key=key))


def test_a_waiting_payment_is_seen_without_its_content(serve: Starter) -> None:
    running = serve(env=ALLOWED).ready()
    assert act(running, "outbox", "pause", {"reason": "look"}).status == 200

    with posting(running, f"{SECRET}-key") as answer:
        management = running.management
        wait_for(lambda: management.get("/debug/actors/outbox/mailbox").json()["messages"], "it waits")
        seen = management.get("/debug/actors/outbox/mailbox")
        assert act(running, "outbox", "resume").status == 200

    assert answer.result().status == 201
    assert "Submit" in {message["message_type"] for message in seen.json()["messages"]}
    assert SECRET not in seen.body.decode()
    assert SECRET not in running.text()
    assert running.stop() == 0


def test_an_outbox_that_cannot_store_refuses_actions_and_brings_nothing_down(serve: Starter) -> None:
    """Every action is audited in the outbox; five of them while it is paused must not end the process."""
    running = serve(env=ALLOWED, http__request_timeout="200ms").ready()
    log = whole_life(running.api)
    assert act(running, "outbox", "pause", {"reason": "look"}).status == 200
    with posting(running, "late") as answer:
        refusals = [act(running, "gauges", "pause")]

    assert answer.result().json()["code"] == "outcome-unknown"
    assert [refusal(reply) for reply in refusals] == [(503, "not-done")]
    assert state_of(running, "gauges") == "running"
    assert act(running, "outbox", "resume").json()["audited"] is True
    running.ready()
    letters = running.management.get("/debug/deadletters").json()["items"]
    assert {letter["reason"] for letter in letters} == {"expired"}
    traces = {letter["message_type"]: letter["trace_id"] for letter in letters}
    assert traces["Submit"] == answer.result().json()["request_id"]
    assert SECRET not in json.dumps(letters)
    assert running.named("actor.crashed") == []
    log += whole_life(running.api)
    settle(running.data_dir)
    check_books(log, running.data_dir)
    assert [row[1:3] for row in audit(running)] == [("pause", "outbox"), ("resume", "outbox")]
    assert running.stop() == 0


def test_tokens_come_from_a_secrets_directory(serve: Starter, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "management__tokens__carol").write_text(TOKEN + "\n")
    running = serve("--secrets-dir", str(secrets), management__allow_actions="true").ready()

    assert act(running, "gauges", "restart").json()["by"] == "carol"
    assert audit(running)[0][0] == "carol"
