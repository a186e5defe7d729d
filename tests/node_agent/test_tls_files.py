"""What Open vSwitch is given to read: whole sets only."""

import asyncio
from datetime import timedelta
from pathlib import Path

from controller.authority import Authority
from node_agent import tls_files
from settings import Agent, Tls
from settings.tls import Identity, client_context, read
from tests.waiting import wait_until


def identity() -> Identity:
    ca = Authority.new()
    key, certificate = ca.for_controller(["127.0.0.1"], timedelta(days=1))
    return Identity(key, certificate, ca.certificate_pem, "the pair", "the CA")


def test_a_set_takes_the_place_of_another(tmp_path: Path) -> None:
    for _ in range(3):
        new = identity()
        tls_files.put(tmp_path, new)
        kept = read(tls_files.kept(tmp_path), "x")
        assert (kept.key, kept.certificate, kept.ca) == (new.key, new.certificate, new.ca)
        link = tmp_path / "tls"
        assert link.is_symlink()
        assert sorted(tmp_path.iterdir()) == sorted([link, link.resolve()])
        assert {path.stat().st_mode & 0o777 for path in link.iterdir()} == {0o600}
        assert link.resolve().stat().st_mode & 0o777 == 0o700
    tls_files.remove(tmp_path)
    assert not list(tmp_path.iterdir())


def test_half_a_pair_is_not_taken(tmp_path: Path) -> None:
    state, given = tmp_path / "state", Tls(tmp_path / "k", tmp_path / "c", tmp_path / "a")
    state.mkdir()
    agent = Agent(node="n", controllers=("c",), state=state, tls=given)
    first, second = identity(), identity()
    given.ca.write_bytes(first.ca)
    given.key.write_bytes(first.key)
    given.certificate.write_bytes(first.certificate)

    def kept_certificate() -> bytes:
        client_context(read(tls_files.kept(state), "x"))
        return tls_files.kept(state).certificate.read_bytes()

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(tls_files.follow(agent, given))
            await asyncio.to_thread(wait_until, tls_files.kept(state).ca.exists)
            given.key.write_bytes(second.key)
            await asyncio.sleep(2 * tls_files._LOOK)
            assert kept_certificate() == first.certificate
            given.certificate.write_bytes(second.certificate)
            await asyncio.to_thread(wait_until, lambda: kept_certificate() == second.certificate)
            following.cancel()

    asyncio.run(main())
