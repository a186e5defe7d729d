"""A connection to the API server of a lab."""

import http
import http.client
import json
import ssl
from typing import Any

from pyroute2 import netns

from bench.controller import Manifest
from lab import LabError
from lab.apiserver import PORT as API_SERVER_PORT
from lab.layout import CONTROL_ADDRESS, LabLayout

PATIENCE = 60.0


class ApiConnection:
    """One connection to the API server of a lab, as its administrator."""

    def __init__(self, layout: LabLayout) -> None:
        pki = layout.control / "apiserver" / "pki"
        self._token = (pki / "admin.token").read_text()
        trusted = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._connection = http.client.HTTPSConnection(
            str(CONTROL_ADDRESS), API_SERVER_PORT, context=trusted, timeout=PATIENCE
        )
        # A socket stays in the namespace in which it was made.
        netns.pushns(layout.netns("control"))
        try:
            self._connection.connect()
        finally:
            netns.popns()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def send(self, method: str, path: str, content: Manifest) -> dict[str, Any]:
        """One request with an object, whose uid is the API server's to give; the answer.

        Raises `LabError`.
        """
        metadata = {key: value for key, value in content["metadata"].items() if key != "uid"}
        body = json.dumps({**content, "metadata": metadata})
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.load(response)
        if response.status not in {http.HTTPStatus.OK, http.HTTPStatus.CREATED}:
            raise LabError(f"{method} {path}: {answer.get('message', response.reason)}")
        return answer
