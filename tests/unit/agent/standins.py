"""Stand-ins for the Hub, ModelScope and a registry: as much of their APIs as their own clients read and write by."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from email import message_from_bytes
from fnmatch import fnmatch
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from unit.agent.servers import Handler, Server

Files = dict[str, bytes]
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reply(handler: Handler, body: Any, status: int = 200) -> None:
    handler.send(status, json.dumps(body).encode(), {"Content-Type": "application/json"})


def form(handler: Handler) -> dict[str, str]:
    """The fields of a form, as the standard library's parser of mail reads them."""
    head = f"Content-Type: {handler.headers['Content-Type']}\r\n\r\n".encode()
    parts: list[Any] = message_from_bytes(head + handler.body).get_payload()  # type: ignore[assignment]
    names = [str(part.get_param("name", header="content-disposition")) for part in parts]
    return dict(zip(names, (part.get_payload() for part in parts), strict=True))


@dataclass
class Repository:
    """A repository with branches, whose head a commit makes anew."""

    branches: dict[str, Files]
    private: bool = False
    commits: int = 0

    def head(self, branch: str) -> str:
        """The commit's name, which is that of its content."""
        files = self.branches[branch]
        return hashlib.sha1(repr(sorted((n, digest(d)) for n, d in files.items())).encode()).hexdigest()

    def at(self, revision: str) -> Files | None:
        """The files at a branch or at the head of one."""
        if revision in self.branches:
            return self.branches[revision]
        return next((files for branch, files in self.branches.items() if self.head(branch) == revision), None)


@dataclass
class Hub:
    """The Hugging Face Hub. Whoever writes must have the token."""

    server: Server
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By kind/org/name."""
    objects: dict[str, bytes] = field(default_factory=dict)
    token: str = "hf_ours"

    def __post_init__(self) -> None:
        self.server.answer = self.answer

    def add(self, name: str, files: Files) -> Repository:
        self.repositories[name] = Repository({"main": files, "v1": files})
        return self.repositories[name]

    def answer(self, handler: Handler) -> None:
        path = unquote(urlsplit(handler.path).path).strip("/")
        parts = path.split("/")
        if handler.command in ("GET", "HEAD"):
            self.read(handler, parts)
        elif parts[0] == "lfs":
            assert digest(handler.body) == parts[1]
            self.objects[parts[1]] = handler.body
            handler.send(200)
        elif handler.headers.get("Authorization") != f"Bearer {self.token}":
            handler.send(401 if handler.headers.get("Authorization") is None else 403)
        elif parts[:3] == ["api", "repos", "create"]:
            self.create(handler)
        elif parts[:2] == ["api", "validate-yaml"]:
            reply(handler, {"errors": [], "warnings": []})
        elif parts[0] == "api" and "/".join(parts[1:4]) not in self.repositories:
            handler.send(404, headers={"X-Error-Code": "RepoNotFound"})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self.batch(handler)
        else:
            {"branch": self.branch, "preupload": self.preupload, "commit": self.commit}[parts[4]](handler, parts)

    def read(self, handler: Handler, parts: list[str]) -> None:
        if parts[0] == "api":
            repository = self.repositories.get("/".join(parts[1:4]))
            unknown = repository is None or (repository.private and not handler.headers.get("Authorization"))
            revision = parts[5] if len(parts) > 5 else "main"
            if repository is None or unknown:
                handler.send(401, headers={"X-Error-Code": "RepoNotFound"})
            elif (files := repository.at(revision)) is None:
                handler.send(404, headers={"X-Error-Code": "RevisionNotFound"})
            elif "tree" in parts:
                reply(handler, [{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in files.items()])
            else:
                branch = next(name for name, found in repository.branches.items() if found is files)
                reply(handler, {
                    "id": "/".join(parts[2:4]), "_id": "1", "sha": repository.head(branch), "private": False,
                    "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": n} for n in files],
                })  # fmt: skip
            return
        kind = "datasets" if parts[0] == "datasets" else "models"
        parts = parts[1:] if kind == "datasets" else parts
        repository = self.repositories["/".join((kind, *parts[:2]))]
        files = repository.at(parts[3])
        assert files is not None
        data = files["/".join(parts[4:])]
        commit = repository.head(next(name for name, found in repository.branches.items() if found is files))
        handler.file(data, ETag=f'"{digest(data)}"', **{"X-Repo-Commit": commit})

    def create(self, handler: Handler) -> None:
        asked = json.loads(handler.body)
        kind, name = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        url = f"http://{self.server.address}/{'datasets/' if kind == 'dataset' else ''}{name}"
        name = f"{kind}s/{name}"
        if name in self.repositories:
            reply(handler, {"error": f"You already created this {kind} repo", "url": url}, 409)
            return
        private = asked.get("visibility") == "private"
        self.repositories[name] = Repository({"main": {".gitattributes": ATTRIBUTES}}, private)
        reply(handler, {"url": url})

    def branch(self, handler: Handler, parts: list[str]) -> None:
        branches = self.repositories["/".join(parts[1:4])].branches
        if parts[5] in branches:
            reply(handler, {"error": "Reference already exists"}, 409)
        else:
            branches[parts[5]] = dict(branches["main"])
            handler.send(200)

    def preupload(self, handler: Handler, parts: list[str]) -> None:
        asked = json.loads(handler.body)["files"]
        large = [line.split()[0] for line in ATTRIBUTES.decode().splitlines()]
        modes = {one["path"]: any(fnmatch(one["path"], pattern) for pattern in large) for one in asked}
        files = [
            {"path": p, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False} for p, lfs in modes.items()
        ]
        reply(handler, {"files": files})

    def batch(self, handler: Handler) -> None:
        objects = []
        for one in json.loads(handler.body)["objects"]:
            more = {}
            if one["oid"] not in self.objects:
                more = {"actions": {"upload": {"href": f"http://{self.server.address}/lfs/{one['oid']}"}}}
            objects.append({**one, **more})
        reply(handler, {"transfer": "basic", "objects": objects})

    def commit(self, handler: Handler, parts: list[str]) -> None:
        repository, branch = self.repositories["/".join(parts[1:4])], parts[5]
        header, *lines = [json.loads(line) for line in handler.body.splitlines()]
        if header["value"].get("parentCommit") != repository.head(branch):
            reply(handler, {"error": "A commit has happened since"}, 412)
            return
        files = dict(repository.branches[branch])
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        repository.branches[branch] = files
        repository.commits += 1
        oid = repository.head(branch)
        url = f"http://{self.server.address}/{'/'.join(parts[2:4])}/commit/{oid}"
        reply(handler, {"success": True, "commitOid": oid, "commitUrl": url})


@dataclass
class ModelScope:
    """ModelScope: its older API, which its client uses for models and datasets. A dataset's files come by pages."""

    server: Server
    repositories: dict[str, Files] = field(default_factory=dict)
    """By kind/org/name, at the revisions master and v1."""
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0
    token: str = "ms_ours"

    def __post_init__(self) -> None:
        self.server.answer = self.answer

    def answer(self, handler: Handler) -> None:
        parts = urlsplit(handler.path).path.strip("/").split("/")
        ours = handler.headers.get("Authorization") == f"Bearer {self.token}"
        if handler.command == "GET":
            self.read(handler, parts, ours)
        elif not ours:
            reply(handler, {"Code": 10010205001, "Message": "no permission", "Success": False}, 403)
        elif parts[0] == "lfs":
            assert digest(handler.body) == parts[1]
            self.objects[parts[1]] = handler.body
            reply(handler, {"Code": 200, "Success": True})
        elif parts[:2] == ["api", "v1"] and parts[2:] in (["models"], ["datasets"]):
            self.create(handler, parts[2])
        elif parts[6:] == ["info", "lfs", "objects", "batch"]:
            self.batch(handler)
        else:
            self.commit(handler, "/".join(parts[3:6]), parts[7])

    def read(self, handler: Handler, parts: list[str], ours: bool) -> None:
        # api v1 models org base repo [files | tree]
        query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        name = "/".join(parts[2:5])
        files = self.repositories.get(name)
        hidden = name in self.private and not ours
        if parts[5:] == []:  # what is known of the repository
            if files is None or hidden:
                reply(handler, {"Code": 10010205001, "Message": "not found", "Success": False}, 404)
            else:
                reply(handler, {"Code": 200, "Data": {"Name": parts[4], "Path": parts[3]}, "Success": True})
        elif parts[:2] != ["api", "v1"] or files is None or query.get("Revision") not in ("master", "v1") or hidden:
            body = {"Code": 10010205001, "Message": "not found", "RequestId": "1", "Success": False}
            reply(handler, body, 404)
        elif parts[6:] in (["files"], ["tree"]):
            entries = [{"Path": f"{one.split('/')[0]}", "Type": "tree"} for one in list(files)[:1] if "/" in one]
            entries += [
                {"Path": n, "Name": n.split("/")[-1], "Type": "blob", "Size": len(d), "Sha256": digest(d),
                 "Revision": f"commit-{self.commits}"} for n, d in files.items()
            ]  # fmt: skip
            if "PageNumber" in query:
                size = int(query["PageSize"])
                entries = entries[(int(query["PageNumber"]) - 1) * size :][:size]
            reply(handler, {"Code": 200, "Data": {"Files": entries}, "Success": True})
        else:
            handler.file(files[query["FilePath"]])

    def create(self, handler: Handler, kind: str) -> None:
        asked = form(handler) if kind == "datasets" else json.loads(handler.body)
        owner = asked["Owner" if kind == "datasets" else "Path"]
        name = f"{kind}/{owner}/{asked['Name']}"
        self.repositories[name] = {".gitattributes": ATTRIBUTES, "README.md": b"---\nlicense: x\n---\n",
                                   "configuration.json": b"{}"}  # fmt: skip
        if int(asked["Visibility"]) == 1:
            self.private.add(name)
        reply(handler, {"Code": 200, "Data": {"Name": asked["Name"], "Path": owner}, "Success": True})

    def batch(self, handler: Handler) -> None:
        asked = json.loads(handler.body)["objects"]
        where = f"http://{self.server.address}/lfs"
        objects = [
            one if one["oid"] in self.objects else {**one, "actions": {"upload": {"href": f"{where}/{one['oid']}"}}}
            for one in asked
        ]
        reply(handler, {"Code": 200, "Data": {"objects": objects}, "Success": True})

    def commit(self, handler: Handler, name: str, branch: str) -> None:
        assert branch == "master"
        files = dict(self.repositories[name])
        for one in json.loads(handler.body)["actions"]:
            if one["action"] == "delete":
                del files[one["path"]]
            elif one["type"] == "lfs":
                files[one["path"]] = self.objects[one["sha256"]]
            else:
                files[one["path"]] = base64.b64decode(one["content"])
        self.repositories[name] = files
        self.commits += 1
        reply(handler, {"Code": 200, "Data": {}, "Success": True})


class Registry:
    """Answers as a registry does, by the distribution specification, with tokens."""

    def __init__(self, server: Server) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.host = server.address
        self.cuts = 0
        self.tokens = 0
        self.lasts = 10**6
        """Requests that a token is good for."""
        server.answer = self.answer

    def blob(self, data: bytes, title: str | None = None, kind: str = "application/octet-stream") -> dict[str, object]:
        name = f"sha256:{digest(data)}"
        self.blobs[name] = data
        more = {"annotations": {"org.opencontainers.image.title": title}} if title else {}
        return {"mediaType": kind, "digest": name, "size": len(data), **more}

    def push(self, tag: str, *layers: dict[str, object]) -> str:
        body = json.dumps({"schemaVersion": 2, "layers": layers}).encode()
        name = f"sha256:{digest(body)}"
        self.manifests[tag] = self.manifests[name] = body
        return name

    def answer(self, handler: Handler) -> None:
        url = urlsplit(handler.path)
        path, given = url.path, handler.headers.get("Authorization", "")
        if path == "/token":
            good = given == "Basic bWU6aHVzaA=="
            asked = parse_qs(url.query)
            assert asked["service"] == ["registry"]
            assert asked["scope"][0] in ("repository:team/adapter:pull", "repository:team/adapter:pull,push")
            self.tokens += 1
            self.left = self.lasts
            token = f"let-me-{asked['scope'][0].rsplit(':', 1)[1]}-{self.tokens}"
            handler.send(200 if good else 401, json.dumps({"token": token}).encode())
            return
        rights = given.removeprefix("Bearer let-me-").rpartition("-")
        if rights[2] != str(self.tokens) or not self.tokens or self.left <= 0:
            challenge = f'Bearer realm="https://{self.host}/token",service="registry",scope="x"'
            handler.send(401, headers={"WWW-Authenticate": challenge})
            return
        self.left -= 1
        if handler.command in ("GET", "HEAD"):
            self.read(handler, path)
        elif "push" not in rights[0]:
            handler.send(403)
        elif handler.command == "POST":
            assert path == "/v2/team/adapter/blobs/uploads/"
            handler.send(202, headers={"Location": "/v2/team/adapter/blobs/uploads/7?state=x"})
        elif path.startswith("/v2/team/adapter/manifests/"):
            layers = json.loads(handler.body)
            assert {one["digest"] for one in (*layers["layers"], layers["config"])} <= self.blobs.keys()
            name = f"sha256:{digest(handler.body)}"
            self.manifests[path.rsplit("/", 1)[1]] = self.manifests[name] = handler.body
            handler.send(201, headers={"Docker-Content-Digest": name})
        else:
            asked = parse_qs(url.query)
            assert asked["state"] == ["x"]
            assert asked["digest"] == [f"sha256:{digest(handler.body)}"]
            self.blobs[asked["digest"][0]] = handler.body
            handler.send(201)

    def read(self, handler: Handler, path: str) -> None:
        if path.startswith("/v2/team/adapter/manifests/"):
            body = self.manifests.get(path.rsplit("/", 1)[1])
            handler.send(200, body) if body else handler.send(404)
        elif (data := self.blobs.get(path.rsplit("/", 1)[1])) is None:
            handler.send(404)
        else:
            self.cuts -= 1
            handler.file(data, cut=1000 if self.cuts >= 0 else 0)
