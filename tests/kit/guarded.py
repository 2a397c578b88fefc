"""An API with keys: callers with scopes and owners."""

from __future__ import annotations

from typing import Any

import httpx

from tests.kit.system import Process, System
from worker.ledger.api_keys import Key, Keys
from worker.settings import Settings

NDJSON = {"Content-Type": "application/x-ndjson"}


class Guarded:
    """An installation with API keys."""

    def __init__(self, system: System, api: Process) -> None:
        self.system = system
        self.api = api
        self.ids: dict[str, str] = {}
        self._clients: list[httpx.Client] = []

    def make(self, name: str, **fields: Any) -> str:
        """A new key, as ``services keys create`` makes it."""
        keys = Keys(Settings(redis_url=self.system.redis.url))
        text, key = keys.create(Key(id="", name=name, **fields))
        keys.redis.close()
        self.ids[name] = key.id
        return text

    def client(self, key: str) -> httpx.Client:
        client = self.system.client()
        client.headers["Authorization"] = f"Bearer {key}"
        self._clients.append(client)
        return client

    def new(self, name: str, **fields: Any) -> httpx.Client:
        """A client with a key of its own."""
        return self.client(self.make(name, **fields))

    def close(self) -> None:
        for client in self._clients:
            client.close()
