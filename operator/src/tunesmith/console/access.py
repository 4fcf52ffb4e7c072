"""Who asks, and with which rights: never with more than the user's own."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

from tunesmith.client import AsyncClient
from tunesmith.kube.connection import Connection


class Unknown(Exception):
    """A request without a token, or with a wrong one."""


class Access(Protocol):
    """How a request's token becomes a client."""

    local: bool
    """On the user's own machine: it knows the namespace of the kubeconfig, and may read from where the user may."""

    def client(self, token: str, namespace: str = "") -> AbstractAsyncContextManager[AsyncClient]:
        """A client for one request. Raises Unknown."""
        ...


class OwnToken:
    """In the cluster: the token is the user's for the API server, and this process has no other."""

    local = False

    def __init__(self, server: str, authority: Path | str) -> None:
        self.server, self.authority = server, str(authority)

    @asynccontextmanager
    async def client(self, token: str, namespace: str = "") -> AsyncIterator[AsyncClient]:
        """As whoever the token is of."""
        if not token:
            raise Unknown("log in with a token that the cluster knows, for example of `kubectl create token`")
        connection = Connection.of_token(self.server, self.authority, token)
        async with AsyncClient(namespace or "default", connection=connection) as client:
            yield client


class OwnKubeconfig:
    """On the user's machine: with the user's kubeconfig, for who knows the secret that was put into the browser's
    address. Other users of the machine, and pages of other origins, do not.
    """

    local = True

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.secret = secrets.token_urlsafe(32)

    @asynccontextmanager
    async def client(self, token: str, namespace: str = "") -> AsyncIterator[AsyncClient]:
        """As the kubeconfig's user."""
        # A header may be any bytes.
        if not secrets.compare_digest(token.encode(errors="surrogateescape"), self.secret.encode()):
            raise Unknown("open the address that `tunesmith console` printed: this one lacks its secret")
        yield AsyncClient(namespace or self._client.namespace, connection=self._client.connection)
