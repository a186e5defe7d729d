"""Contexts out of PEM, and what becomes of them when it is replaced."""

import contextlib
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from controller.authority import Authority
from settings import SettingsError
from settings.tls import (
    Identity,
    Replaceable,
    client_context,
    listening_context,
    nobodys_context,
    server_context,
)


def identity() -> Identity:
    ca = Authority.new()
    key, certificate = ca.for_controller(["127.0.0.1"], timedelta(days=1))
    return Identity(key, certificate, ca.certificate_pem, "the pair", "the CA")


@pytest.mark.parametrize("make", [server_context, client_context])
@pytest.mark.parametrize(
    ("field", "content", "sentence"),
    [
        ("ca", b"", "the CA: no PEM file of certificates"),
        ("key", b"", "the pair: "),
        ("key", identity().key, "the pair: KEY_VALUES_MISMATCH"),
        ("certificate", b"x", "the pair: "),
    ],
)
def test_what_is_of_no_use_is_named(
    make: Callable[[Identity], ssl.SSLContext], field: str, content: bytes, sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        make(replace(identity(), **{field: content}))


def test_what_is_replaced_is_taken_once_it_is_of_use() -> None:
    first, second = identity(), identity()
    given = [first]
    contexts = Replaceable(lambda: given[0], server_context)
    before = contexts.context()
    assert contexts.context() is before
    # The key is there already, its certificate not yet.
    given[0] = replace(first, key=second.key)
    assert contexts.context() is before
    given[0] = second
    after = contexts.context()
    assert after is not before
    assert contexts.context() is after


def test_each_handshake_is_by_what_is_there_then() -> None:
    first, second = identity(), identity()
    given = [first]
    listening = listening_context(
        Replaceable(lambda: given[0], lambda its: server_context(its, ssl.CERT_NONE))
    )

    def shown_to(trusting: Identity) -> None:
        """Shake hands in memory. Raises `ssl.SSLCertVerificationError`."""
        pipes = [ssl.MemoryBIO() for _ in range(4)]
        server = listening.wrap_bio(pipes[0], pipes[1], server_side=True)
        trust = nobodys_context(trusting.ca, "the CA")
        client = trust.wrap_bio(pipes[2], pipes[3], server_hostname="127.0.0.1")
        for _ in range(3):
            for side, source, sink in ((client, pipes[3], pipes[0]), (server, pipes[1], pipes[2])):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
                sink.write(source.read())

    shown_to(first)
    given[0] = second
    with pytest.raises(ssl.SSLCertVerificationError):
        shown_to(first)
    shown_to(second)
