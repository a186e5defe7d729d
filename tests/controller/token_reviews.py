"""In the place of an API server that reviews tokens of viewers."""

import asyncio
from typing import Any

import msgspec
import pytest

from controller import token_review

GOOD = {
    "authenticated": True,
    "audiences": ["sluice-reports"],
    "user": {"username": "system:serviceaccount:sluice-system:sluice-viewer"},
}


class ApiServer:
    """It reviews tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reviewed: list[str] = []
        self.verdicts: dict[str, Any] = {}
        """By token; for others, the token is good."""
        self.answers: asyncio.Event | None = None
        """Until it is set, nothing is answered."""
        monkeypatch.setattr(token_review, "read", self._read)

    async def connect(self) -> Any:
        return self

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def _read(self, _: object, method: str, path: str, body: Any) -> bytes:
        assert (method, path.rpartition("/")[2]) == ("POST", "tokenreviews")
        assert body["spec"]["audiences"] == ["sluice-reports"]
        token = body["spec"]["token"]
        self.reviewed.append(token)
        await asyncio.sleep(0)
        if self.answers:
            await self.answers.wait()
        return msgspec.json.encode({"status": self.verdicts.get(token, GOOD)})
