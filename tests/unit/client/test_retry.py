"""Running a job once more, against the few answers of an API server that it needs."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tunesmith.client import AsyncClient, FineTuneJob, Invalid
from tunesmith.kube.connection import Connection

OVER = {"type": "Succeeded", "status": "False", "reason": "DataError", "message": "", "observedGeneration": 1}
JOB: dict[str, Any] = {
    "apiVersion": "tunesmith.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "x", "namespace": "ns", "generation": 1},
    "spec": {"model": {"uri": "pvc://m/x"}, "datasets": [{"uri": "pvc://d/r.jsonl"}], "method": {"type": "SFT"}},
    "status": {"conditions": [{**OVER, "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
}


@pytest.mark.parametrize("taken", [True, False])
async def test_a_job_that_would_be_refused_is_not_removed_first(taken: bool) -> None:
    asked: list[tuple[str, bool]] = []
    kept = [JOB]

    async def answer(request: web.Request) -> web.Response:
        dry = request.query.get("dryRun") == "All"
        asked.append((request.method, dry))
        if request.method == "DELETE":
            return web.json_response(kept.pop())
        if request.method == "GET":
            gone = {"message": "not found", "details": {"name": "x"}}
            if request.path.endswith("finetunejobs"):
                return web.json_response({"items": kept})
            return web.json_response(kept[0] if kept else gone, status=200 if kept else 404)
        return web.json_response(JOB if taken else {"message": "spec.x is gone"}, status=200 if taken else 422)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        connection = Connection.of_token(str(server.make_url("")).rstrip("/"), "", "t")
        async with AsyncClient("ns", connection=connection) as client:
            if taken:
                await client.retry(FineTuneJob.model_validate(JOB))
                assert [one for one in asked if one[0] != "GET"] == [
                    ("PATCH", True),
                    ("DELETE", False),
                    ("PATCH", False),
                ]
            else:
                with pytest.raises(Invalid):
                    await client.retry(FineTuneJob.model_validate(JOB))
                assert kept, "its spec is nowhere else"
