"""Supervisor: handlers over their time (SV-23 to SV-26)."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.actors import Events, Scripted, child, running
from tests.support.virtual_loop import advance, settle, virtual


async def work_ten_seconds(_actor: Scripted, _message: Any) -> str:
    await asyncio.sleep(10)
    return "finished"


@virtual
async def test_sv_23_a_handler_over_its_time_is_reported_before_it_is_touched() -> None:
    """One event, a gauge that goes back, and the handler finishes."""
    events = Events()
    async with running(child("a", lambda: Scripted(work_ten_seconds), handler_timeout_s=5), events=events) as system:
        asker = asyncio.create_task(system.ref("a").ask("x", timeout_s=60))
        await advance(8)
        gauges = [system.tree().children[0].stuck]
        assert not asker.done()
        await advance(4)
        gauges.append(system.tree().children[0].stuck)

        assert await asker == "finished"
        assert gauges == [True, False]
        (stuck,) = events.of("actor.stuck")
        assert (stuck["actor"], stuck["message_type"]) == ("a", "str")
        assert 5 <= stuck["elapsed_s"] <= 6
        assert "work_ten_seconds" in str(stuck["stack"][-1])


@virtual
async def test_sv_24_action_restart_cancels_waits_then_replaces() -> None:
    """The message in hand is a dead letter; the restart counts."""
    events = Events()
    spec = child("a", lambda: Scripted(work_ten_seconds), handler_timeout_s=5, stuck_action="restart")
    async with running(spec, events=events) as system:
        system.ref("a").tell("x")
        await advance(7)

        node = system.tree().children[0]
        assert (node.exit_reason, node.instance, node.stuck_total) == ("stuck", 2, 1)
        assert [letter.reason for letter in system.dead_letters()] == ["poison"]
        assert system.tree().restarts_in_window == 1
    assert events.of("actor.stopped")[0]["reason"] == "stuck"


@virtual
async def test_sv_25_a_long_but_honest_wait_is_not_stuck() -> None:
    """After the zone the handler has its full time again."""
    events = Events()

    async def poll(actor: Scripted, _message: Any) -> None:
        with actor.ctx.progress_zone():
            await asyncio.sleep(60)
        await asyncio.sleep(4)

    async with running(child("a", lambda: Scripted(poll), handler_timeout_s=5), events=events) as system:
        await system.ref("a").ask("x", timeout_s=100)

    assert events.of("actor.stuck") == []


@virtual
async def test_sv_26_an_idle_actor_is_not_stuck() -> None:
    """An hour of nothing."""
    events = Events()
    async with running(child("a", handler_timeout_s=5), events=events) as system:
        await advance(3600)
        await settle()

        assert system.tree().children[0].state == "running"
    assert events.of("actor.stuck") == []
