"""Reaching etcd: several endpoints, TLS, users, and one clear line for everything that can be wrong with them."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from flannel_udp.errors import RegistryUnavailable, UsageError
from flannel_udp.etcd_options import Endpoint, EtcdOptions
from flannel_udp.registry.etcd import EtcdRegistry
from flannel_udp.registry.etcd_shim import rpc
from tests.conftest import DEADLINE, wait_until
from tests.interop.etcd_cluster import VERSIONS, Cluster, Member, b64, cluster, write_certificates
from tests.interop.tcp_proxy import proxy

SHORT = 0.5  # seconds that a call may take which is to fail
NOBODY = Endpoint("127.0.0.1", 1, False)


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(version: str) -> Iterator[Cluster]:
    with cluster(version) as running:
        yield running


def complaint(options: EtcdOptions) -> str:
    """What a call fails with."""
    with contextlib.closing(EtcdRegistry(options, SHORT)) as registry:
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable) as caught:
            registry.snapshot()
        assert time.monotonic() - began < 10
    assert "\n" not in str(caught.value)
    return str(caught.value)


def works(options: EtcdOptions) -> bool:
    with contextlib.closing(EtcdRegistry(options)) as registry:
        return registry.snapshot().entries == ()


# -- endpoints --------------------------------------------------------------------------------------------------------


def test_endpoints_that_are_down_are_no_event(plain: Cluster) -> None:
    (good,) = plain.endpoints
    assert works(plain.options(endpoints=(NOBODY, good)))
    assert works(plain.options(endpoints=(good, NOBODY)))
    assert works(plain.options(endpoints=(NOBODY, Endpoint("nowhere.invalid", 2379, False), NOBODY, good)))


def test_every_endpoint_that_failed_is_named_with_its_reason(plain: Cluster) -> None:
    said = complaint(plain.options(endpoints=(NOBODY, Endpoint("nowhere.invalid", 2379, False))))
    assert re.fullmatch("etcd: http://127.0.0.1:1: connection refused; "
                        "http://nowhere.invalid:2379: the name cannot be resolved: .*", said)
    said = complaint(plain.options(endpoints=(Endpoint("a..b", 2379, False),)))
    assert said == "etcd: http://a..b:2379: the name cannot be resolved: it is no host name"


def test_trap_12_a_frozen_server_holds_no_call_longer_than_its_time(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flannel_udp.registry.etcd_endpoint._OPTIONS", ())  # no keep-alive that would end it too
    with cluster(version) as store, contextlib.closing(EtcdRegistry(store.options(), SHORT)) as registry:
        revision = registry.snapshot().revision
        store.members[0].freeze()
        began = time.monotonic()
        for call in (registry.snapshot, registry.read_config, lambda: registry.create("a", b"", 9, revision),
                     lambda: registry.delete("a", 1), lambda: registry.write_config("", 0)):
            with pytest.raises(RegistryUnavailable, match="no answer in time"):
                call()
        assert time.monotonic() - began < 20  # five halves of a second
        store.members[0].thaw()
        assert registry.snapshot().entries == ()


def test_trap_12_a_call_waits_for_a_server_that_is_just_starting(version: str) -> None:
    with cluster(version) as store, contextlib.closing(EtcdRegistry(store.options(), DEADLINE)) as registry:
        store.kill()
        read: list[int] = []
        reader = threading.Thread(target=lambda: read.append(registry.snapshot().revision), daemon=True)
        reader.start()
        reader.join(0.5)
        assert reader.is_alive()
        store.members[0].start()
        reader.join(DEADLINE)
        assert read == [1]


def test_the_death_of_any_member_is_no_event(version: str) -> None:
    with cluster(version, 3) as store, contextlib.closing(EtcdRegistry(store.options(), DEADLINE)) as registry:
        entry = registry.create("10.5.1.0-24", b"{}", 100, registry.snapshot().revision)
        for member in (store.members[0], leader(store)):
            member.kill()
            entry = registry.update("10.5.1.0-24", b"{}", 100, entry.revision)
            member.start()
            wait_until(lambda member=member: answers(member.address), "it is back")  # type: ignore[misc]


def leader(store: Cluster) -> Member:
    """The member that leads."""
    for member, endpoint in zip(store.members, store.endpoints, strict=True):
        with contextlib.closing(EtcdRegistry(store.options(endpoints=(endpoint,)))) as registry:
            stub = registry._client._endpoints[0].client().maintenancestub
            status = stub.Status(rpc.StatusRequest(), timeout=DEADLINE)
            if status.leader == status.header.member_id:
                return member
    raise AssertionError("no leader")


def answers(address: str) -> bool:
    with contextlib.closing(EtcdRegistry(EtcdOptions(endpoints=(Endpoint(address, 2379, False),)), SHORT)) as registry:
        with contextlib.suppress(RegistryUnavailable):
            return bool(registry.snapshot())
        return False


def test_something_else_at_the_port_is_told(plain: Cluster) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

    threading.Thread(target=serve, daemon=True).start()
    assert complaint(plain.options(endpoints=(Endpoint("127.0.0.1", port, False),))).startswith("etcd: http://127.0.0.1")
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secured(version: str, authority: trustme.CA) -> Iterator[Cluster]:
    with cluster(version, authority=authority) as running:
        yield running


@pytest.fixture(scope="module")
def mutual(version: str, authority: trustme.CA) -> Iterator[Cluster]:
    """Wants a client's certificate."""
    with cluster(version, 1, "--client-cert-auth", authority=authority) as running:
        yield running


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """Another authority, and a client of it."""
    write_certificates(tmp_path, trustme.CA(), "127.0.0.1")
    return tmp_path


def client_of(folder: Path) -> dict[str, Path]:
    return {"keyfile": folder / "client.key", "certfile": folder / "client.crt"}


def test_a_ca_alone_is_enough(secured: Cluster) -> None:
    assert works(secured.options())


def test_a_certificate_is_shown_to_who_wants_one(mutual: Cluster) -> None:
    assert works(mutual.options(**client_of(mutual.folder)))
    said = complaint(mutual.options())
    assert "wants a certificate of this node" in said
    assert "--etcd-certfile" in said


def test_without_a_ca_the_systems_are_used(secured: Cluster, monkeypatch: pytest.MonkeyPatch, stranger: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(secured.folder / "ca.pem"))  # OpenSSL's name for another list of the system
    assert works(secured.options(cafile=None))
    monkeypatch.setenv("SSL_CERT_FILE", str(stranger / "ca.pem"))
    assert "its certificate is refused" in complaint(secured.options(cafile=None))


def test_an_endpoint_without_scheme_is_https_where_tls_files_are_given(secured: Cluster, plain: Cluster) -> None:
    (there,) = secured.endpoints
    assert works(secured.options(endpoints=(replace(there, tls=None),)))
    (there,) = plain.endpoints
    assert works(plain.options(endpoints=(replace(there, tls=None),)))


def test_tls_files_beside_plain_endpoints_are_told_not_to_be_used(
    plain: Cluster, secured: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert works(plain.options(cafile=secured.folder / "ca.pem"))
    assert "etcd is spoken to in plain text" in capsys.readouterr().err


def test_trap_17_a_wrong_ca_is_told(secured: Cluster, stranger: Path) -> None:
    said = complaint(secured.options(cafile=stranger / "ca.pem"))
    assert "its certificate is refused: unable to get local issuer certificate" in said
    assert f"--etcd-cafile {stranger}/ca.pem" in said


def test_trap_17_a_certificate_for_another_name_is_told(secured: Cluster) -> None:
    with proxy(secured.members[0].address, 2379) as road:
        said = complaint(secured.options(endpoints=(Endpoint("127.0.0.1", road.port, True),)))
    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in said


def test_trap_17_a_strangers_certificate_is_told(mutual: Cluster, stranger: Path) -> None:
    assert "wants a certificate of this node" in complaint(mutual.options(**client_of(stranger)))


def test_trap_17_plain_to_tls_and_tls_to_plain_are_told(secured: Cluster, plain: Cluster) -> None:
    (there,) = secured.endpoints
    assert "speaks TLS: an https:// endpoint" in complaint(secured.options(endpoints=(replace(there, tls=False),)))
    (there,) = plain.endpoints
    assert "http:// endpoint" in complaint(secured.options(endpoints=(replace(there, tls=True),)))


@pytest.mark.parametrize(("files", "said"), [
    ({"cafile": "/nowhere/ca.pem"}, "--etcd-cafile /nowhere/ca.pem: No such file or directory"),
    ({"cafile": "/etc/passwd"}, "--etcd-cafile /etc/passwd: expected certificates in PEM form"),
    ({"keyfile": "/nowhere/x.key", "certfile": "{}/client.crt"}, "--etcd-keyfile /nowhere/x.key: No such file"),
    ({"keyfile": "{}/client.key", "certfile": "/nowhere/x.crt"}, "--etcd-certfile /nowhere/x.crt: No such file"),
    ({"keyfile": "{}/server.key", "certfile": "{}/client.crt"}, "server.key: expected the unencrypted key of the "),
    ({"keyfile": "{}/client.key", "certfile": "/etc/passwd"}, "expected the unencrypted key of the certificate /etc"),
])
def test_trap_17_files_are_looked_at_before_anything_else(
    secured: Cluster, files: dict[str, str], said: str
) -> None:
    paths = {name: Path(path.format(secured.folder)) for name, path in files.items()}
    with pytest.raises(UsageError) as caught:
        EtcdRegistry(secured.options(**paths))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_renewed_certificates_are_taken_without_a_restart(tmp_path: Path, stranger: Path, mutual: Cluster) -> None:
    files = {name: tmp_path / name for name in ("client.key", "client.crt")}
    for name, path in files.items():
        path.write_bytes((stranger / name).read_bytes())
    options = mutual.options(keyfile=files["client.key"], certfile=files["client.crt"])
    with contextlib.closing(EtcdRegistry(options, SHORT)) as registry:
        with pytest.raises(RegistryUnavailable):
            registry.snapshot()
        for name, path in files.items():
            path.write_bytes((mutual.folder / name).read_bytes())
            os.utime(path, (1, 1))
        wait_until(lambda: tried(registry), "it is let in")


def test_files_that_are_missing_while_they_are_renewed_are_no_more_than_an_outage(
    tmp_path: Path, stranger: Path, mutual: Cluster
) -> None:
    files = {name: tmp_path / name for name in ("client.key", "client.crt")}
    for name, path in files.items():
        path.write_bytes((stranger / name).read_bytes())
    options = mutual.options(keyfile=files["client.key"], certfile=files["client.crt"])
    with contextlib.closing(EtcdRegistry(options, SHORT)) as registry:
        assert not tried(registry)
        for path in files.values():
            path.unlink()
        assert not tried(registry)  # which still had the old connection
        with pytest.raises(RegistryUnavailable, match=r"client\.key: No such file"):
            registry.snapshot()
        for name, path in files.items():
            path.write_bytes((mutual.folder / name).read_bytes())
        wait_until(lambda: tried(registry), "it is let in")


def tried(registry: EtcdRegistry) -> bool:
    with contextlib.suppress(RegistryUnavailable):
        return registry.snapshot().entries == ()
    return False


# -- users ------------------------------------------------------------------------------------------------------------

ROOT = {"username": "root", "password": "secret"}
NODE = {"username": "node", "password": "pass"}


@pytest.fixture
def guarded(version: str) -> Iterator[Cluster]:
    """A cluster that asks who one is; the node may touch its prefix only."""
    with cluster(version) as running:
        for name, password in (("root", "secret"), ("node", "pass"), ("guest", "guest")):
            running.call("auth/user/add", name=name, password=password)
        running.call("auth/user/grant", user="root", role="root")
        running.call("auth/role/add", name="node")
        running.call("auth/role/grant", name="node", perm={
            "permType": "READWRITE", "key": b64("/own/"), "range_end": b64("/own0")})
        running.call("auth/user/grant", user="node", role="node")
        running.call("auth/enable")
        yield running


def of(store: Cluster, who: dict[str, str]) -> EtcdOptions:
    return store.options(prefix="/own/network", **who)


def test_trap_06_a_user_is_let_in_without_tls(guarded: Cluster) -> None:
    with contextlib.closing(EtcdRegistry(of(guarded, NODE))) as registry:
        entry = registry.create("10.5.1.0-24", b"{}", 100, registry.snapshot().revision)
        watch = registry.watch(entry.revision)
        entry = registry.update("10.5.1.0-24", b"{}", 100, entry.revision)
        assert [change.revision for change in watch.wait(DEADLINE)] == [entry.revision]
        assert registry.expiry("10.5.1.0-24")
        registry.delete("10.5.1.0-24", entry.revision)
        watch.close()


def test_a_user_is_no_harm_where_nobody_is_asked(plain: Cluster) -> None:
    assert works(plain.options(**NODE))


def test_trap_09_every_refusal_is_ours_and_one_line(guarded: Cluster) -> None:
    assert complaint(of(guarded, {**NODE, "password": "wrong"})) == (
        "etcd refuses: authentication failed, invalid user ID or password (user 'node' of --etcd-username, "
        "--etcd-password)")
    assert complaint(of(guarded, {"username": "guest", "password": "guest"})) == (
        "etcd refuses: permission denied (user 'guest' of --etcd-username, --etcd-password)")
    assert complaint(of(guarded, {})) == (
        "etcd refuses: user name is empty (it wants a user: --etcd-username and --etcd-password)")


def test_trap_09_a_full_store_is_told_and_still_read(version: str) -> None:
    small = ("--quota-backend-bytes", str(64 << 10))
    with cluster(version, 1, *small) as store, contextlib.closing(EtcdRegistry(store.options(), SHORT)) as registry:
        def fill() -> str:
            with contextlib.suppress(RegistryUnavailable):
                registry.create(f"10.{time.monotonic_ns()}", b"x" * 30_000, None, registry.snapshot().revision)
                return ""
            return "full"

        wait_until(fill, "the store is full")
        with pytest.raises(RegistryUnavailable, match="etcd refuses: mvcc: database space exceeded"):
            registry.create("10.5.1.0-24", b"", None, registry.snapshot().revision)


def forget_token(store: Cluster) -> None:
    """Have every member forget the node's tokens, which it does when a password changes, if only into itself.

    A restart does not: tokens come back with the log. To wait for their end would be to wait on time.
    """
    with contextlib.closing(EtcdRegistry(of(store, ROOT))) as admin:
        client = admin._client
        endpoint = client._endpoints[0]
        request = rpc.AuthUserChangePasswordRequest(name=NODE["username"], password=NODE["password"])
        rpc.AuthStub(endpoint.client().channel).UserChangePassword(
            request, timeout=DEADLINE, metadata=client._metadata(endpoint, DEADLINE))


def test_trap_05_a_token_that_the_server_forgot_is_had_anew(guarded: Cluster) -> None:
    with contextlib.closing(EtcdRegistry(of(guarded, NODE))) as registry:
        entry = registry.create("10.5.1.0-24", b"{}", None, registry.snapshot().revision)
        for call in (registry.snapshot, lambda: registry.update("10.5.1.0-24", b"{}", None, entry.revision)):
            token = registry._client._token
            forget_token(guarded)
            call()
            assert registry._client._token != token


def test_trap_04_a_watch_with_a_token_that_the_server_forgot_logs_in_again(guarded: Cluster) -> None:
    with contextlib.closing(EtcdRegistry(of(guarded, NODE))) as registry:
        revision = registry.snapshot().revision
        forget_token(guarded)
        watch = registry.watch(revision)
        with contextlib.closing(EtcdRegistry(of(guarded, NODE))) as other:
            entry = other.create("10.5.1.0-24", b"{}", None, other.snapshot().revision)
        assert [change.revision for change in watch.wait(DEADLINE)] == [entry.revision]
        watch.close()


def test_trap_04_a_watch_that_is_not_allowed_says_so(guarded: Cluster) -> None:
    with contextlib.closing(EtcdRegistry(guarded.options(prefix="/foreign", **NODE))) as registry:
        watch = registry.watch(1)
        with pytest.raises(RegistryUnavailable, match=r"permission denied \(user 'node'"):
            watch.wait(DEADLINE)
        watch.close()


# -- the command line -------------------------------------------------------------------------------------------------


def flannel_udp(*words: str, **environ: str) -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, "-P", "-m", "flannel_udp.cli", *words], capture_output=True, text=True,
                          check=False, timeout=60, env={**os.environ, **environ})
    return done.returncode, done.stdout, done.stderr


def reach(options: EtcdOptions) -> dict[str, str]:
    endpoints = ",".join(f"{'https' if each.tls else 'http'}://{each.host}:{each.port}" for each in options.endpoints)
    return {"FLANNELD_ETCD_ENDPOINTS": f"http://127.0.0.1:4001,{endpoints}", "FLANNELD_ETCD_PREFIX": options.prefix}


def test_commands_find_etcd_by_the_environment(plain: Cluster) -> None:
    environ = reach(options := plain.options())
    assert flannel_udp("config", "get", **environ) == (
        1, "", f"flannel-udp: etcd holds no network configuration yet ({options.prefix}/config)\n")
    status, out, err = flannel_udp("config", "set", '{"Network":"10.5.0.0/16"}', **environ)
    assert (status, err) == (0, "")
    assert out.startswith("network configuration written")
    plain.put(f"{options.prefix}/subnets/\udcff".encode("utf-8", "surrogateescape"), b"")
    with contextlib.closing(EtcdRegistry(options)) as registry:
        value = b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'
        registry.create("10.5.1.0-24", value, 7200, registry.snapshot().revision)
        registry.create("10.5.2.0-24", value, None, registry.snapshot().revision)
    status, out, err = flannel_udp("leases", **environ)
    assert status == 0
    assert re.search(r"10\.5\.1\.0/24 .* in [12]h\d+m +no", out)
    assert re.search(r"10\.5\.2\.0/24 .* yes", out)
    assert err.count("\n") == 1
    assert "skipped" in err
    assert flannel_udp("leases", "--json", **environ)[0] == 0


def test_a_failure_is_one_line_and_gRPC_adds_nothing(guarded: Cluster) -> None:  # noqa: N802
    environ = {**reach(of(guarded, {})), "FLANNELD_ETCD_USERNAME": "node", "FLANNELD_ETCD_PASSWORD": "wrong"}
    status, out, err = flannel_udp("leases", **environ)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("flannel-udp: etcd refuses: authentication failed")
    status, out, err = flannel_udp("leases", "--etcd-endpoints", "http://127.0.0.1:1", FLANNELD_ETCD_ENDPOINTS="")
    assert (status, out, err) == (1, "", "flannel-udp: etcd: http://127.0.0.1:1: connection refused\n")
    status, out, err = flannel_udp("leases", "--etcd-keyfile", "/x")
    assert (status, out, err.splitlines()[0]) == (
        2, "", "flannel-udp: --etcd-keyfile without --etcd-certfile: one is of no use without the other")
    status, out, err = flannel_udp("leases", "--registry", "etcd://10.0.0.1:2379")
    assert status == 2
    assert "--etcd-endpoints" in err
