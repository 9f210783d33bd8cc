"""What the plugin does for each verb; each gives what goes to stdout, if anything, or raises Failure."""

from __future__ import annotations

import contextlib
import os

from flannel_udp.cni import call, delegate, failure, records
from flannel_udp.cni.failure import Failure
from flannel_udp.cni.readiness import daemon_trouble, read_env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from flannel_udp.cni.call import Attachment, Call, Network
    from flannel_udp.cni.records import Record

    Answer = dict[str, Any]

USUAL_INTERFACE = "eth0"  # what runtimes call it; for files of flannel's plugin, which do not tell


def add(asked: Call) -> Answer:
    """Have the interface made; undo it when that fails, as the specification wants it (section 4)."""
    network = asked.network
    configuration = delegate.configure(network, read_env(network.subnet_file))
    delegate.find(configuration["type"])
    with records.locked(network.data_dir, asked.attachment.container):
        path = records.write(network.data_dir, asked.attachment, configuration)
        try:
            result = delegate.run("ADD", configuration)
        except Failure:
            with _noted():  # where this fails too the record stays, for the DEL that a runtime owes after a failed ADD
                delegate.run("DEL", configuration)
                records.remove(path)
            raise
    return _joined(network.previous, result) if network.previous else result


def delete(asked: Call) -> None:
    """Undo what was delegated; nothing to undo is success."""
    network = asked.network
    if not records.there(network.data_dir):
        return
    with records.locked(network.data_dir, asked.attachment.container):
        record = records.find(network.data_dir, asked.attachment, network.name)
        if record:
            # A path that leads to the node's own namespace by now: the container's has gone.
            _undo(network, record, **({"CNI_NETNS": ""} if call.own_netns(os.environ) else {}))
            records.remove(record.path)
        records.sweep(network.data_dir, asked.attachment)


def check(asked: Call) -> None:
    """See that the container is still reached: our record, the daemon, the subnet, then the delegated plugin's part."""
    network, attachment = asked.network, asked.attachment
    record = records.find(network.data_dir, attachment, network.name)
    if record is None:
        raise Failure(failure.UNKNOWN_CONTAINER, f"{attachment} is not there", f"no record in {network.data_dir}")
    if record.configuration is None:
        raise Failure(failure.DECODE, f"{record.path} is damaged", "DEL, then ADD, makes it anew")
    if trouble := daemon_trouble(network.control_socket):
        raise Failure(failure.DAEMON, "the node's daemon is not ready", trouble)
    own = {str(subnet) for subnet in read_env(network.subnet_file).subnets}
    if gone := [subnet for subnet in delegate.subnets(record.configuration) if subnet not in own]:
        raise Failure(failure.STALE, f"{', '.join(gone)} is not this node's any more: nobody reaches {attachment}",
                      f"the node has {', '.join(sorted(own))}: DEL, then ADD, gives new addresses")  # fmt: skip
    told = {**record.configuration, **_version(network), "prevResult": _with_gateways(network.previous or {})}
    delegate.run("CHECK", told)


def status(asked: Call) -> None:
    """See that ADD would work, and that containers are reached."""
    network = asked.network
    if trouble := daemon_trouble(network.control_socket):
        raise Failure(failure.LIMITED, "the node's daemon is not ready", trouble)
    try:
        configuration = delegate.configure(network, read_env(network.subnet_file))
        if os.environ.get("CNI_PATH"):  # which this verb may come without
            delegate.run("STATUS", configuration)
    except Failure as error:
        code = error.code if error.code in (failure.UNAVAILABLE, failure.LIMITED) else failure.UNAVAILABLE
        raise Failure(code, error.message, error.details) from None


def collect(asked: Call) -> None:
    """Undo all attachments of the network but the valid ones, then have the delegated plugins do the same.

    One error does not keep the rest from being done.
    """
    network = asked.network
    errors: list[Failure] = []
    if not records.there(network.data_dir):
        _forward(network, None, errors)
    else:
        with records.locked(network.data_dir, None):
            last = _collect_invalid(network, errors)
            # Still locked: when this call is killed the plugins go on, and would take what is added after their list.
            _forward(network, last, errors)
            with _noted(errors):
                records.tidy(network.data_dir)
    if errors:
        details = "; ".join(filter(None, [errors[0].details, *(other.message for other in errors[1:])]))
        raise Failure(errors[0].code, errors[0].message, details)


def version(said: Mapping[str, Any]) -> Answer:
    """The versions of the specification that this plugin speaks."""
    asked = said.get("cniVersion")
    return {"cniVersion": asked if isinstance(asked, str) and asked else call.LATEST,
            "supportedVersions": list(call.VERSIONS)}  # fmt: skip


VERBS: dict[str, Callable[[Call], Answer | None]] = {
    "ADD": add, "DEL": delete, "CHECK": check, "STATUS": status, "GC": collect,
}  # fmt: skip


# -- undoing ----------------------------------------------------------------------------------------------------------


def _undo(network: Network, record: Record, **variables: str) -> None:
    """DEL with what ADD was delegated with. Of a damaged record it is made anew, where subnet.env allows it."""
    configuration = record.configuration
    if configuration is None:
        try:
            configuration = delegate.configure(network, read_env(network.subnet_file))
        except Failure as error:
            _log(f"{record.path} is damaged, and cannot be made anew: {error}")
            return
    previous = network.previous or {}
    # A result in the form of another version, after the network's was changed, would only be refused.
    known = previous and previous.get("cniVersion") == configuration.get("cniVersion")
    delegate.run("DEL", {**configuration, **({"prevResult": previous} if known else {})}, **variables)


def _collect_invalid(network: Network, errors: list[Failure]) -> Mapping[str, Any] | None:
    """Undo all attachments but the valid ones; the last configuration that was found."""
    last = None
    for path in records.files(network.data_dir):
        with _noted(errors):
            record = records.read(path)
            if record is None or not records.belongs(record, network.name):
                continue
            last = record.configuration or last
            if not _is_valid(record, network.valid):
                _collect(network, record)
    return last


def _collect(network: Network, record: Record) -> None:
    # The namespace is taken for gone, as the specification allows: another container may have one of that name by now.
    attachment = {"CNI_CONTAINERID": record.container, "CNI_IFNAME": record.interface or USUAL_INTERFACE}
    _undo(network, record, **attachment, CNI_NETNS="", CNI_ARGS="")
    records.remove(record.path)


def _is_valid(record: Record, valid: frozenset[Attachment]) -> bool:
    """Whether a record is to stay: its attachment is listed, or any of its container where it does not tell which."""
    if record.interface:
        return (record.container, record.interface) in valid
    return any(one.container == record.container for one in valid)


def _forward(network: Network, last: Mapping[str, Any] | None, errors: list[Failure]) -> None:
    """Pass GC on, to the IPAM plugin too: the bridge plugin does not do that.

    Without subnet.env it gets what was delegated last, since the ranges do not matter here.
    """
    try:
        configuration = delegate.configure(network, read_env(network.subnet_file))
    except Failure as error:
        if last is None:
            errors.append(error)
            return
        configuration = {**last, **_version(network)}
    valid = [{"containerID": one.container, "ifname": one.interface} for one in sorted(network.valid)]
    for plugin in (configuration["type"], configuration["ipam"]["type"]):
        with _noted(errors):
            delegate.run_plugin(plugin, "GC", {**configuration, "cni.dev/valid-attachments": valid})


@contextlib.contextmanager
def _noted(errors: list[Failure] | None = None) -> Iterator[None]:
    """Go on after a Failure, which is told on stderr and kept in `errors`."""
    try:
        yield
    except Failure as error:
        _log(f"{error}: {error.details}" if error.details else str(error))
        if errors is not None:
            errors.append(error)


# -- results ----------------------------------------------------------------------------------------------------------


def _joined(previous: Answer, result: Answer) -> Answer:
    """The result of the plugins before this one with ours added, as the specification wants it of any plugin."""
    interfaces = list(previous.get("interfaces") or ())
    moved = [{**ip, "interface": ip["interface"] + len(interfaces)} if isinstance(ip.get("interface"), int) else ip
             for ip in result.get("ips") or ()]  # fmt: skip
    return {
        **previous, **result,
        "interfaces": interfaces + list(result.get("interfaces") or ()),
        "ips": list(previous.get("ips") or ()) + moved,
        "routes": list(previous.get("routes") or ()) + list(result.get("routes") or ()),
        "dns": result.get("dns") or previous.get("dns") or {},
    }  # fmt: skip


def _with_gateways(result: Answer) -> Answer:
    """The result with the gateways of its addresses in its routes, where these name none.

    To the specification that is the same (section 5); the bridge plugin makes such a route, and CHECK then misses it.
    """
    ips = reversed(result.get("ips") or ())  # so that the first of a family counts
    gateways = {":" in ip["gateway"]: ip["gateway"] for ip in ips if ip.get("gateway")}
    routes = [{**route, "gw": route.get("gw") or gateways.get(":" in route["dst"])}
              for route in result.get("routes") or ()]  # fmt: skip
    return {**result, "routes": routes}


def _version(network: Network) -> dict[str, str]:
    return {key: value for key, value in network.handed_on.items() if key == "cniVersion"}


def _log(line: str) -> None:
    failure.log(f"flannel-udp: {line}")
