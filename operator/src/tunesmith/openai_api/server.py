"""The HTTP of it: who asks, what is asked for, and the answer."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp import web
from pydantic import ValidationError

from tunesmith.client.resources import FineTuneJob
from tunesmith.kube.client import path_of
from tunesmith.kube.connection import ApiError, Connection
from tunesmith.openai_api import objects
from tunesmith.openai_api.catalog import Catalog
from tunesmith.openai_api.errors import ApiRefusal, no_such, of_kubernetes, of_validation
from tunesmith.openai_api.files import Files, Record
from tunesmith.openai_api.graders import reward_file
from tunesmith.openai_api.objects import ENDED, job_object, page, status_of
from tunesmith.openai_api.requests import (
    CANCELLED_ANNOTATION,
    MADE_LABEL,
    MAX_SEED,
    CreateJob,
    Inputs,
    job_body,
    job_name,
)
from tunesmith.openai_api.rows import METHODS, WANTED
from tunesmith.openai_api.settings import Settings

log = logging.getLogger("tunesmith.openai_api")
KIND = "FineTuneJob"
MANAGER = "tunesmith-openai-api"
CHUNK = 2**16
BODY_BYTES = 2**20
LOOKS = 8
"""At a job that is to change: while it runs, its status changes every few seconds."""
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The routes and what they need."""

    def __init__(self, settings: Settings, catalog: Catalog, files: Files) -> None:
        self.settings, self.catalog, self.files = settings, catalog, files
        self._writing = asyncio.Lock()

    def application(self) -> web.Application:
        """The application."""
        app = web.Application(middlewares=[answered], client_max_size=BODY_BYTES)
        jobs = "/v1/fine_tuning/jobs"
        app.add_routes(
            [
                web.get("/healthz", self.healthz),
                web.post("/v1/files", self.create_file),
                web.get("/v1/files", self.list_files),
                web.get("/v1/files/{id}", self.get_file),
                web.get("/v1/files/{id}/content", self.get_content),
                web.delete("/v1/files/{id}", self.delete_file),
                web.post(jobs, self.create_job),
                web.get(jobs, self.list_jobs),
                web.get(jobs + "/{id}", self.get_job),
                web.post(jobs + "/{id}/cancel", self.cancel_job),
                web.post(jobs + "/{id}/pause", self.pause_job),
                web.post(jobs + "/{id}/resume", self.resume_job),
                web.get(jobs + "/{id}/events", self.list_events),
                web.get(jobs + "/{id}/checkpoints", self.list_checkpoints),
                web.get("/v1/models", self.list_models),
                web.get("/v1/models/{id}", self.get_model),
            ]
        )
        return app

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    # -- files ------------------------------------------------------------------------------------------------

    async def create_file(self, request: web.Request) -> web.Response:
        async with self._caller(request) as caller:
            await self._may_train(caller)
        if not request.content_type.startswith("multipart/"):
            raise ApiRefusal("Expected a request of multipart/form-data with 'file' and 'purpose'.")
        purpose = record = None
        with self.files.upload() as file:
            filename = None
            async for part in await request.multipart():
                if not isinstance(part, aiohttp.BodyPartReader):
                    raise ApiRefusal("A part of the request has parts of its own.")
                if part.name == "purpose":
                    purpose = (await part.read_chunk(64)).decode(errors="replace")
                elif part.name == "file" and filename is None:
                    filename = (part.filename or "file.jsonl")[:255]
                    await self._receive(part, file)
            if purpose != "fine-tune":
                found = "Missing required parameter: 'purpose'." if purpose is None else f"Invalid purpose: {purpose}."
                raise ApiRefusal(f"{found} Files here are for 'fine-tune'.", param="purpose", code="invalid_purpose")
            if filename is None:
                raise ApiRefusal("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
            async with self._writing:
                record = await asyncio.to_thread(self.files.keep, file, filename)
        return web.json_response(record.body)

    async def _receive(self, part: aiohttp.BodyPartReader, file: Any) -> None:
        most, size = self.settings.max_file_mib * 2**20, 0
        while chunk := await part.read_chunk(CHUNK):
            size += len(chunk)
            if size > most:
                message = f"The file is larger than {self.settings.max_file_mib} MiB."
                raise ApiRefusal(message, status=413, param="file", code="file_too_large")
            await asyncio.to_thread(file.write, chunk)

    async def list_files(self, request: web.Request) -> web.Response:
        async with self._caller(request) as caller:
            await self._may_train(caller)
        found = [] if request.query.get("purpose", "fine-tune") != "fine-tune" else self.files.list()
        if request.query.get("order") == "asc":
            found.reverse()
        bodies = [one.body for one in found]
        return web.json_response(page(bodies, request.query.get("after"), _limit(request, 10_000, 10_000)))

    async def get_file(self, request: web.Request) -> web.Response:
        return web.json_response((await self._file(request)).body)

    async def get_content(self, request: web.Request) -> web.StreamResponse:
        record = await self._file(request)
        return web.FileResponse(self.files.content(record), headers={"Content-Type": "application/octet-stream"})

    async def delete_file(self, request: web.Request) -> web.Response:
        record = await self._file(request)
        async with self._caller(request) as caller:
            for job in await self._jobs(caller):
                said = objects.request_of(job)
                if record.id in (said.training_file, said.validation_file) and status_of(job) not in ENDED:
                    message = f"File {record.id} is used by {job.name}, which is not over: cancel that job first."
                    raise ApiRefusal(message, status=409, param="id", code="file_in_use")
        async with self._writing:
            await asyncio.to_thread(self.files.delete, record)
        return web.json_response({"object": "file", "id": record.id, "deleted": True})

    async def _file(self, request: web.Request) -> Record:
        async with self._caller(request) as caller:
            await self._may_train(caller)
        return self.files.get(request.match_info["id"])

    # -- jobs -------------------------------------------------------------------------------------------------

    async def create_job(self, request: web.Request) -> web.Response:
        async with self._caller(request) as caller:
            await self._may_train(caller)  # before anything of a file is said
            wanted = CreateJob.model_validate(await _json(request))
            if wanted.model not in self.catalog:
                known = ", ".join(self.catalog.root) or "none"
                message = f"Model {wanted.model} is not available for fine-tuning. Available: {known}."
                raise ApiRefusal(message, param="model", code="model_not_available")
            inputs = Inputs(
                self._data(wanted, wanted.training_file, "training_file"),
                self._data(wanted, wanted.validation_file, "validation_file") if wanted.validation_file else None,
                await self._reward(wanted),
            )
            name = job_name(wanted.suffix, secrets.token_hex(6))
            body = job_body(wanted, self.catalog[wanted.model], inputs, name, secrets.randbelow(MAX_SEED))
            query = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
            made = await caller.call("POST", path_of(KIND, self.settings.namespace), body, query=query)
        return web.json_response(job_object(FineTuneJob.model_validate(made)))

    def _data(self, wanted: CreateJob, id_: str, param: str) -> str:
        """Address of an upload's rows, after a look that the method can learn from them."""
        record, form = self.files.get(id_, param), METHODS[wanted.chosen.type]
        if record.form != form:
            message = f"{param} {id_} does not fit method {wanted.chosen.type}: its rows must have {WANTED[form]}."
            raise ApiRefusal(message, param=param, code=f"invalid_{param}")
        return f"{self.settings.store}/{record.data}"

    async def _reward(self, wanted: CreateJob) -> str | None:
        options = wanted.chosen.reinforcement
        if not options:
            return None
        return f"{self.settings.store}/{await asyncio.to_thread(self.files.source, reward_file(options.grader))}"

    async def list_jobs(self, request: web.Request) -> web.Response:
        wanted = {
            key[len("metadata[") : -1]: value
            for key, value in request.query.items()
            if key.startswith("metadata[") and key.endswith("]")
        }
        async with self._caller(request) as caller:
            found = [job_object(job) for job in await self._jobs(caller)]
        found = [one for one in found if wanted.items() <= one["metadata"].items()]
        return web.json_response(page(found, request.query.get("after"), _limit(request, 20, 100)))

    async def get_job(self, request: web.Request) -> web.Response:
        async with self._caller(request) as caller:
            return web.json_response(job_object(await self._job(caller, request)))

    async def list_events(self, request: web.Request) -> web.Response:
        async with self._caller(request) as caller:
            found = objects.events(await self._job(caller, request))
        return web.json_response(page(found, request.query.get("after"), _limit(request, 20, 100)))

    async def list_checkpoints(self, request: web.Request) -> web.Response:
        async with self._caller(request) as caller:
            found = objects.checkpoints(await self._job(caller, request))
        return web.json_response(page(found, request.query.get("after"), _limit(request, 10, 100)))

    async def pause_job(self, request: web.Request) -> web.Response:
        return await self._change(request, {"spec": {"suspend": True}})

    async def resume_job(self, request: web.Request) -> web.Response:
        return await self._change(request, {"spec": {"suspend": False}})

    async def cancel_job(self, request: web.Request) -> web.Response:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        mark = {"metadata": {"annotations": {CANCELLED_ANNOTATION: now}}}
        return await self._change(request, {**mark, "spec": {"suspend": True}})

    async def _change(self, request: web.Request, change: dict[str, Any]) -> web.Response:
        async with self._caller(request) as caller:
            for left in reversed(range(LOOKS)):
                job = await self._job(caller, request)
                if (status := status_of(job)) in ENDED:
                    raise ApiRefusal(f"Job {job.name} is over: its status is {status}.", param="id", code="job_over")
                try:
                    live = await self._changed(caller, job, change)
                    break
                except ApiError as error:
                    if error.status != 409 or not left:
                        raise
        return web.json_response(job_object(FineTuneJob.model_validate(live)))

    async def _changed(self, caller: Connection, job: FineTuneJob, change: dict[str, Any]) -> Any:
        """The job as it is now. Refused where it has changed since it was looked at: it may be over."""
        path = path_of(KIND, self.settings.namespace, job.name)
        meta = {**change.get("metadata", {}), "resourceVersion": job.metadata.resource_version}
        kind = "application/merge-patch+json"
        query = {"fieldManager": MANAGER}
        return await caller.call("PATCH", path, {**change, "metadata": meta}, query=query, content=kind)

    # -- models -----------------------------------------------------------------------------------------------

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": await self._models(request)})

    async def get_model(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        for one in await self._models(request):
            if one["id"] == name:
                return web.json_response(one)
        raise no_such("model", name, "model")

    async def _models(self, request: web.Request) -> list[dict[str, Any]]:
        async with self._caller(request) as caller:
            made = [objects.made_model(job) for job in await self._jobs(caller) if job.done]
        return [*map(objects.base_model, self.catalog.root), *made]

    # -- the API server, as the caller ------------------------------------------------------------------------

    @asynccontextmanager
    async def _caller(self, request: web.Request) -> AsyncIterator[Connection]:
        """A connection with the caller's token. Raises ApiRefusal where there is none."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            message = "You didn't provide an API key: send a Kubernetes token as 'Authorization: Bearer TOKEN'."
            raise ApiRefusal(message, status=401)
        async with Connection.of_token(self.settings.server, str(self.settings.authority), token.strip()) as caller:
            yield caller

    async def _may_train(self, caller: Connection) -> None:
        """Files are for who may make jobs here: these could read the whole claim through a job."""
        wanted = {"namespace": self.settings.namespace, "group": "tunesmith.io", "resource": "finetunejobs"}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**wanted, "verb": "create"}},
        }
        if not (await caller.call("POST", REVIEW, body))["status"]["allowed"]:
            message = (
                f"You may not create FineTuneJobs in namespace {self.settings.namespace}: ask for the role `edit`."
            )
            raise ApiRefusal(message, status=403)

    async def _jobs(self, caller: Connection) -> list[FineTuneJob]:
        """All jobs that came this way, the newest first."""
        path, query = path_of(KIND, self.settings.namespace), {"labelSelector": f"{MADE_LABEL}=true"}
        items = (await caller.call("GET", path, query=query))["items"]
        jobs = [FineTuneJob.model_validate({"kind": KIND, **one}) for one in items]
        return sorted(
            filter(objects.came_this_way, jobs),
            key=lambda one: (one.metadata.creation_timestamp or "", one.name),
            reverse=True,
        )

    async def _job(self, caller: Connection, request: web.Request) -> FineTuneJob:
        name = request.match_info["id"]
        if not name.replace("-", "").isalnum():
            raise no_such("fine-tuning job", name, "fine_tuning_job_id")
        try:
            found = await caller.call("GET", path_of(KIND, self.settings.namespace, name))
        except ApiError as error:
            if error.status == 404:
                raise no_such("fine-tuning job", name, "fine_tuning_job_id") from None
            raise
        job = FineTuneJob.model_validate(found)
        if not objects.came_this_way(job):
            raise no_such("fine-tuning job", name, "fine_tuning_job_id")
        return job


@web.middleware
async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a handler raises into OpenAI's error object."""
    try:
        return await handler(request)
    except ApiRefusal as error:
        refusal = error
    except ApiError as error:
        refusal = of_kubernetes(error)
    except ValidationError as error:
        refusal = of_validation(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        message = f"Invalid URL ({request.method} {request.path})" if error.status == 404 else error.reason
        refusal = ApiRefusal(message, status=error.status)
    except (aiohttp.ClientError, TimeoutError) as error:
        log.warning("the API server does not answer: %s", error)
        refusal = ApiRefusal("The API server does not answer. Try again.", status=503)
    except Exception:
        log.exception("%s %s", request.method, request.path)
        refusal = ApiRefusal("The server had an error while processing your request.", status=500)
    return web.json_response(refusal.body, status=refusal.status)


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError):
        raise ApiRefusal("We could not parse the JSON body of your request.") from None


def _limit(request: web.Request, default: int, most: int) -> int:
    text = request.query.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= most:
        raise ApiRefusal(f"Invalid 'limit': expected a number from 1 to {most}.", param="limit", code="invalid_value")
    return int(text)
