"""This node's VTEPs: the devices of the vxlan backend by family, and the MAC of each that peers write on every packet.

A peer that does not know a new MAC yet sends packets that are dropped here, and flannel's own nodes may miss the news
for as long as a day. So a MAC is made once, kept in the state directory under its device's name, and taken from where
peers have it if that is lost: from a lease in the registry.
"""

from __future__ import annotations

import json
import os
import struct
from functools import cache
from typing import TYPE_CHECKING, Any

from flannel_udp import logs
from flannel_udp._dataplane import VXLAN_FLAG_VNI
from flannel_udp.backend.family import families_of
from flannel_udp.config import parse_vxlan_config
from flannel_udp.errors import LeaseError, UnderlayError
from flannel_udp.foreign_json import read_json
from flannel_udp.link import parse_mac
from flannel_udp.subnet_env import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease
    from flannel_udp.options import NodeOptions

_log = logs.get("vtep")

NAMES = {4: "flannel.{}", 6: "flannel-v6.{}"}  # specification: flannel's, with the VNI
LOCAL, GROUP = 0x02, 0x01  # specification: IEEE 802, of an address's first byte


def devices(config: NetworkConfig) -> dict[int, str]:
    """The devices' names by family; none if the backend is another."""
    if config.backend_type != "vxlan":
        return {}
    vni = parse_vxlan_config(config).vni
    return {family: NAMES[family].format(vni) for family in families_of(config)}


def file_of(options: NodeOptions) -> Path:
    """Where the MACs are kept."""
    return options.state_dir / "vtep.json"


def known(options: NodeOptions) -> dict[str, bytes]:
    """The MACs that are kept, by device; what cannot be read there is as good as lost."""
    try:
        text = file_of(options).read_text()
    except (OSError, UnicodeDecodeError):
        return {}
    try:
        return {device: parse_mac(mac) for device, mac in read_json(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        _log.warning("damaged file of VtepMACs: they are made anew", file=file_of(options), reason=error)
        return {}


def keep(options: NodeOptions, macs: dict[str, bytes]) -> None:
    """Keep these MACs, beside those of other devices."""
    told = {device: text_of(mac) for device, mac in {**known(options), **macs}.items()}
    try:
        write_whole(file_of(options), json.dumps(told) + "\n")
    except OSError as error:
        raise UnderlayError(f"{file_of(options)} cannot be written: {error.strerror}: this node's VtepMAC would be "
                            "another after each restart (--state-dir names another folder)") from error


@cache  # the loops and the peers' coats have it for as long as the process lives, whatever becomes of the file
def mac_of(options: NodeOptions, device: str) -> bytes:
    """The MAC of this device, made and kept if there is none yet: any of its own choice, marked as such, as flannel."""
    found = known(options)
    if device not in found:
        first, *others = os.urandom(6)
        found[device] = bytes([first & ~GROUP | LOCAL, *others])
        keep(options, {device: found[device]})
    return found[device]


def missing(config: NetworkConfig, options: NodeOptions) -> bool:
    """Whether a device has no MAC yet."""
    return not set(devices(config).values()) <= known(options).keys()


def adopt(config: NetworkConfig, options: NodeOptions, standing: Lease | None) -> None:
    """Go on with the MACs that this node's standing lease, if there is one, tells peers, where none are kept."""
    ours, kept, macs = devices(config), known(options), dict[str, bytes]()
    if standing is None or standing.attrs.backend_type != "vxlan":
        return
    for family, data in ((4, standing.attrs.backend_data), (6, standing.attrs.backend_v6_data)):
        if family in ours and ours[family] not in kept:
            try:
                macs[ours[family]] = told_mac(data)
            except LeaseError:
                continue
    if macs:
        keep(options, macs)
        _log.info("going on with the VtepMACs of this node's lease", devices=",".join(macs))


def told_mac(data: Any) -> bytes:  # noqa: ANN401 - JSON of another node
    """The VtepMAC in a lease's BackendData, read as Go reads it; LeaseError if there is none to send packets to."""
    fields = {key.casefold(): value for key, value in data.items()} if isinstance(data, dict) else {}
    text = fields.get("vtepmac")
    if not isinstance(text, str):
        raise LeaseError("tells no VtepMAC")
    try:
        return parse_mac(text)
    except ValueError as error:
        raise LeaseError(f"VtepMAC {json.dumps(text)[:40]} {error}") from None


def data_of(vni: int, mac: bytes) -> dict[str, int | str]:
    """What a lease tells of a VTEP, in flannel's order."""
    return {"VNI": vni, "VtepMAC": text_of(mac)}


def coat(vni: int, destination: bytes, source: bytes, ethertype: int) -> bytes:
    """The bytes before an inner packet: VXLAN header (RFC 7348, 5), inner Ethernet header."""
    return struct.pack("!II6s6sH", VXLAN_FLAG_VNI, vni << 8, destination, source, ethertype)


def text_of(mac: bytes) -> str:
    """A MAC as Go and the kernel write it."""
    return mac.hex(":")
