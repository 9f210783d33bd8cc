"""The etcd registry beyond the contract: what stands in the store, what guards a write, what lost answers become."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from flannel_udp.errors import Conflict, RegistryUnavailable
from flannel_udp.etcd_options import Endpoint, EtcdOptions
from flannel_udp.registry import UNTOLD, Entry
from flannel_udp.registry.etcd import EtcdRegistry
from tests.conftest import wait_until
from tests.interop.etcd_cluster import VERSIONS, Cluster, cluster
from tests.interop.tcp_proxy import Proxy, proxy

KEY, VALUE = "10.5.1.0-24", b'{"PublicIP":"192.0.2.1","PublicIPv6":null}'


@pytest.fixture(scope="module", params=VERSIONS)
def store(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster(request.param) as running:
        yield running


@pytest.fixture
def options(store: Cluster) -> EtcdOptions:
    return store.options()


@pytest.fixture
def registry(options: EtcdOptions) -> Iterator[EtcdRegistry]:
    with contextlib.closing(EtcdRegistry(options)) as registry:
        yield registry


def create(registry: EtcdRegistry, key: str = KEY, ttl: float | None = 100) -> Entry:
    return registry.create(key, VALUE, ttl, registry.snapshot().revision)


# -- what stands in the store -----------------------------------------------------------------------------------------


def test_keys_and_values_are_flannels_and_nothing_else_is_there(
    store: Cluster, options: EtcdOptions, registry: EtcdRegistry
) -> None:
    registry.write_config('{"Network":"10.5.0.0/16"}')
    create(registry)
    create(registry, "10.5.2.0-24&fd00::-64", None)
    stored = store.stored(options.prefix)
    assert {key.removeprefix(options.prefix): found["value"] for key, found in stored.items()} == {
        "/config": b'{"Network":"10.5.0.0/16"}', "/subnets/10.5.1.0-24": VALUE, "/subnets/10.5.2.0-24&fd00::-64": VALUE
    }
    assert [found["lease"] != 0 for found in stored.values()] == [False, True, False]


def test_a_renewal_is_a_put_onto_a_fresh_lease_and_the_old_one_is_revoked(
    store: Cluster, options: EtcdOptions, registry: EtcdRegistry
) -> None:
    before = store.leases()
    entry = create(registry)
    first = lease_of(store, options)
    assert store.leases() - before == {first}
    renewed = registry.update(KEY, VALUE, 100, entry.revision)
    second = lease_of(store, options)
    assert renewed.revision > entry.revision  # flannel's nodes get an event, and with it the new expiry
    assert second not in {0, first}
    assert store.leases() - before == {second}
    reserved = registry.update(KEY, VALUE, None, renewed.revision)
    assert (reserved.expiry, lease_of(store, options)) == (None, 0)
    assert store.leases() == before
    leased = registry.update(KEY, VALUE, 100, reserved.revision)
    registry.delete(KEY, leased.revision)
    assert store.leases() == before


def lease_of(store: Cluster, options: EtcdOptions) -> int:
    (found,) = store.stored(f"{options.prefix}/subnets/").values()
    return int(found["lease"])


def test_a_lost_race_leaks_no_lease(store: Cluster, registry: EtcdRegistry) -> None:
    before = store.leases()
    since = registry.snapshot().revision
    create(registry)
    for number in range(5):
        with pytest.raises(Conflict):
            registry.create(f"10.5.{number + 10}.0-24", VALUE, 1000, since)
    assert len(store.leases() - before) == 2  # one that carries a key, one that the next try takes
    entry = registry.create("10.5.20.0-24", VALUE, 1000, registry.snapshot().revision)
    assert entry.expiry is not None
    assert 990 < entry.expiry - time.time() <= 1000
    assert len(store.leases() - before) == 2


def test_a_lease_that_another_granted_is_left_alone(store: Cluster, options: EtcdOptions) -> None:
    """A node that starts again cannot know whether its old lease carries more than its key."""
    with contextlib.closing(EtcdRegistry(options)) as first:
        entry = create(first)
    old = lease_of(store, options)
    with contextlib.closing(EtcdRegistry(options)) as second:
        second.update(KEY, VALUE, 100, entry.revision)
    assert {old, lease_of(store, options)} <= store.leases()


def test_create_guards_the_whole_range_without_a_key_of_its_own(
    store: Cluster, options: EtcdOptions, registry: EtcdRegistry
) -> None:
    """Another family's key, another length's, a stranger's: any of them written since stands in the way."""
    for key in ("10.5.1.0-25", "0.0.0.0-0&fd00::-64", "10.5.9.0-24&fd00:1::-64", "\x00", "~"):
        since = registry.snapshot().revision
        store.put(f"{options.prefix}/subnets/{key}", VALUE)
        with pytest.raises(Conflict):
            registry.create(KEY, VALUE, 100, since)
    since = registry.snapshot().revision
    for beside in ("config", "subnets", "subnets0", "subnet/x", "subnets-old/10.5.1.0-24"):
        store.put(f"{options.prefix}/{beside}", b"x")
    registry.create(KEY, VALUE, 100, since)


@pytest.mark.parametrize("key", [b"", b"/", b"rubbish", b"\xff\xfe", b"10.5.1.0-24/x", b"a/10.5.1.0-24", b"\x00"])
def test_keys_of_every_kind_are_told_and_can_be_deleted(
    store: Cluster, options: EtcdOptions, registry: EtcdRegistry, key: bytes
) -> None:
    watch = registry.watch(registry.snapshot().revision)
    revision = store.put(f"{options.prefix}/subnets/".encode() + key, b"\x00\xff")
    (entry,) = registry.snapshot().entries
    assert (entry.value, entry.revision, entry.expiry) == (b"\x00\xff", revision, None)
    (change,) = watch.wait(20)
    assert (change.kind, change.key, change.value) == ("put", entry.key, b"\x00\xff")
    registry.delete(entry.key, entry.revision)
    assert registry.snapshot().entries == ()
    watch.close()


def test_the_listing_makes_one_call(registry: EtcdRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        create(registry, f"10.5.{number}.0-24")
    calls: list[str] = []
    ask = registry._client.ask

    def counted(stub: str, method: str, request: object, deadline: float) -> object:
        calls.append(method)
        return ask(stub, method, request, deadline)

    monkeypatch.setattr(registry._client, "ask", counted)
    assert all(entry.expiry == UNTOLD for entry in registry.snapshot().entries)
    assert calls == ["Range"]


def test_trap_07_a_snapshot_and_its_revision_are_of_one_moment(options: EtcdOptions, registry: EtcdRegistry) -> None:
    stop = threading.Event()
    revision = create(registry).revision

    def write() -> None:
        with contextlib.closing(EtcdRegistry(options)) as writer:
            last = revision
            while not stop.is_set():
                last = writer.update(KEY, VALUE, None, last).revision

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        for _ in range(50):
            listing = registry.snapshot()
            assert listing.entries[0].revision == listing.revision  # nobody else writes to this store meanwhile
    finally:
        stop.set()
        thread.join()


def test_trap_10_a_lease_that_has_ended_is_no_error(
    store: Cluster, options: EtcdOptions, registry: EtcdRegistry
) -> None:
    create(registry)
    deadline = registry._client.deadline()
    number = lease_of(store, options)
    assert registry._leases.expiry(number, deadline) > time.time() + 90
    store.call("lease/revoke", ID=number)
    assert registry._leases.expiry(number, deadline) == pytest.approx(time.time(), abs=5)
    assert registry.snapshot().entries == ()


def test_trap_11_a_write_tells_the_revision_that_it_made(
    store: Cluster, options: EtcdOptions, registry: EtcdRegistry
) -> None:
    assert create(registry).revision == store.stored(f"{options.prefix}/subnets/")[
        f"{options.prefix}/subnets/{KEY}"]["mod_revision"]


def test_trap_14_a_proxy_of_the_environment_is_not_for_etcd(
    options: EtcdOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with contextlib.closing(EtcdRegistry(options)) as registry:
        assert registry.snapshot().entries == ()


def test_trap_18_a_listing_may_be_larger_than_grpcs_4_mib(registry: EtcdRegistry) -> None:
    for number in range(6):
        registry.create(f"10.5.{number}.0-24", b"x" * 1_000_000, None, registry.snapshot().revision)
    assert sum(len(entry.value) for entry in registry.snapshot().entries) == 6_000_000


# -- answers that get lost --------------------------------------------------------------------------------------------


@pytest.fixture
def road(store: Cluster) -> Iterator[Proxy]:
    with proxy(store.members[0].address, 2379) as between:
        yield between


@pytest.fixture
def far(options: EtcdOptions, road: Proxy) -> Iterator[EtcdRegistry]:
    """The registry as it is seen through the proxy."""
    endpoint = Endpoint("127.0.0.1", road.port, False)
    with contextlib.closing(EtcdRegistry(EtcdOptions(endpoints=(endpoint,), prefix=options.prefix), 20)) as registry:
        registry.snapshot()
        yield registry


WRITES: dict[str, Callable[[EtcdRegistry, Entry], object]] = {
    "create": lambda far, _: far.create("10.5.2.0-24", VALUE, 100, far.snapshot().revision),
    "reserve": lambda far, _: far.create("10.5.2.0-24", VALUE, None, far.snapshot().revision),
    "renew": lambda far, entry: far.update(KEY, b"new", 100, entry.revision),
    "make a reservation": lambda far, entry: far.update(KEY, b"new", None, entry.revision),
    "delete": lambda far, entry: far.delete(KEY, entry.revision),
    "config": lambda far, _: far.write_config("{}"),
    "first config": lambda far, _: far.write_config("{}", 0),
}


@pytest.mark.parametrize("loss", ["answer", "request"])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_whose_answer_or_request_is_lost_is_done_once(
    registry: EtcdRegistry, far: EtcdRegistry, road: Proxy, monkeypatch: pytest.MonkeyPatch,
    write: Callable[[EtcdRegistry, Entry], object], loss: str,
) -> None:
    entry = create(registry)
    start = registry.snapshot().revision
    watch = registry.watch(start)
    sent = threading.Event()
    send = far._client.send

    def losing(stub: str, method: str, request: object, deadline: float) -> object:
        if method == "Txn" and not sent.is_set():
            road.mute, road.deaf = loss == "answer", loss == "request"
            sent.set()
        return send(stub, method, request, deadline)

    monkeypatch.setattr(far._client, "send", losing)
    result: list[object] = []
    writer = threading.Thread(target=lambda: result.append(write(far, entry)), daemon=True)
    writer.start()
    assert sent.wait(20)
    changes = list(watch.wait(20 if loss == "answer" else 0.3))
    assert bool(changes) is (loss == "answer")  # it was done, but the writer cannot know
    road.mute = road.deaf = False
    road.cut()
    writer.join(20)
    assert not writer.is_alive()
    changes += watch.wait(20) if loss == "request" else watch.wait(0.3)
    assert len(changes) == 1  # done once
    (told,) = result
    assert (told.revision if isinstance(told, Entry) else told) == changes[0].revision
    watch.close()


def test_a_lost_write_that_another_has_overwritten_is_a_conflict(
    registry: EtcdRegistry, far: EtcdRegistry, road: Proxy
) -> None:
    entry = create(registry)
    road.deaf = True
    failed: list[Exception] = []

    def write() -> None:
        try:
            far.update(KEY, VALUE, 100, entry.revision)
        except Conflict as error:
            failed.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    registry.update(KEY, VALUE, 100, entry.revision)
    road.deaf = False
    road.cut()
    writer.join(20)
    assert len(failed) == 1


def test_a_write_of_which_nothing_can_be_learned_says_so_in_time(
    options: EtcdOptions, road: Proxy, registry: EtcdRegistry
) -> None:
    entry = create(registry)
    endpoint = Endpoint("127.0.0.1", road.port, False)
    far = EtcdRegistry(EtcdOptions(endpoints=(endpoint,), prefix=options.prefix), 1.0)
    far.snapshot()
    road.mute = True
    began = time.monotonic()
    with pytest.raises(RegistryUnavailable, match="no answer in time"):
        far.update(KEY, b"new", None, entry.revision)
    assert time.monotonic() - began < 10
    far.close()
    assert registry.snapshot().entries[0].value == b"new"


# -- being loaded -----------------------------------------------------------------------------------------------------


def run(code: str, **environ: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=60,
                          env={**os.environ, **environ})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_commands_that_need_no_etcd_do_not_load_grpc() -> None:
    code = """
import sys
from flannel_udp import cli
for words in (["status", "--run-dir", "/nowhere"], ["config", "check", '{"Network": "10.5.0.0/16"}'],
              ["leases", "--registry", "sqlite:///nowhere/x.db"], ["run", "--help"]):
    sys.stderr = open("/dev/null", "w")
    cli.main(words)
    sys.stderr = sys.__stderr__
import flannel_udp.daemon
print("LOADED", {"grpc", "etcd3", "google.protobuf"} & set(sys.modules))
"""
    assert "LOADED set()" in run(code)


def test_the_shim_lives_beside_another_client_and_leaves_protobufs_pool_alone() -> None:
    code = """
from google.protobuf import descriptor_pb2, descriptor_pool
other = descriptor_pb2.FileDescriptorProto(name="kv.proto", package="mvccpb")
other.message_type.add(name="KeyValue")
descriptor_pool.Default().AddSerializedFile(other.SerializeToString())
from flannel_udp.registry.etcd_shim import etcd3, rpc
kv = rpc.RangeResponse(kvs=[dict(key=b"k", mod_revision=7)])
assert rpc.RangeResponse.FromString(kv.SerializeToString()).kvs[0].mod_revision == 7
print(etcd3.__version__, rpc.Compare(range_end=b"x").range_end)
"""
    assert run(code) == "0.12.0 b'x'\n"


def test_the_shim_refuses_an_etcd3_that_it_does_not_know() -> None:
    code = """
import importlib.metadata as metadata
metadata.version = lambda name: "0.13.0"
try:
    import flannel_udp.registry.etcd_shim
except ImportError as error:
    print(error)
"""
    assert "0.13.0" in run(code)


def test_what_the_user_says_about_grpcs_log_counts() -> None:
    code = "import os, flannel_udp.registry.etcd_shim; print(os.environ['GRPC_VERBOSITY'])"
    assert run(code) == "NONE\n"
    assert run(code, GRPC_VERBOSITY="ERROR") == "ERROR\n"


def test_close_ends_a_call_that_waits(options: EtcdOptions, road: Proxy) -> None:
    far = EtcdRegistry(EtcdOptions(endpoints=(Endpoint("127.0.0.1", road.port, False),), prefix=options.prefix), 60)
    far.snapshot()
    road.mute = True
    failed: list[Exception] = []

    def read() -> None:
        try:
            far.snapshot()
        except RegistryUnavailable as error:
            failed.append(error)

    reader = threading.Thread(target=read, daemon=True)
    said = road.said
    reader.start()
    wait_until(reader.is_alive, "the call is on its way")
    far.close()
    reader.join(20)
    assert [str(error) for error in failed] == ["etcd: closed"]
    assert road.said == said
