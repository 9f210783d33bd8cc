"""VTEPs: names as flannel's, MACs that stay, and where they come from when they are lost."""

import io
import json
from pathlib import Path

import pytest

from flannel_udp.backend import vtep
from flannel_udp.config import NetworkConfig, parse_network_config
from flannel_udp.errors import LeaseError, UnderlayError
from flannel_udp.lease import Lease, LeaseAttrs
from flannel_udp.link import parse_mac
from flannel_udp.options import NodeOptions

MAC, OTHER = "0a:5e:00:53:00:01", "0a:5e:00:53:00:02"


@pytest.fixture
def options(tmp_path: Path) -> NodeOptions:
    return NodeOptions(state_dir=tmp_path / "state")


def config(more: str = "", kind: str = "vxlan") -> NetworkConfig:
    return parse_network_config(f'{{"Network": "10.5.0.0/16", "IPv6Network": "fd00:5::/48"{more}, '
                                f'"Backend": {{"Type": "{kind}", "VNI": 7}}}}')


def told(mac: str, mac6: str | None = None, kind: str = "vxlan") -> Lease:
    data6 = None if mac6 is None else {"VNI": 7, "VtepMAC": mac6}
    return Lease(None, None, LeaseAttrs(None, None, kind, {"VNI": 7, "VtepMAC": mac}, data6), None, 1)


@pytest.mark.parametrize(("more", "names"), [
    ("", {4: "flannel.7"}), (', "EnableIPv6": true', {4: "flannel.7", 6: "flannel-v6.7"}),
    (', "EnableIPv6": true, "EnableIPv4": false', {6: "flannel-v6.7"}),
])
def test_names_are_flannels(more: str, names: dict[int, str]) -> None:
    assert vtep.devices(config(more)) == names
    assert vtep.devices(config(more.replace("false", "true"), "host-gw")) == {}


def test_a_mac_is_made_once_and_kept(options: NodeOptions) -> None:
    made = vtep.mac_of(options, "flannel.1")
    assert vtep.mac_of(options, "flannel.1") == made
    assert vtep.mac_of(options, "flannel-v6.1") != made
    assert vtep.known(options)["flannel.1"] == made
    assert json.loads(vtep.file_of(options).read_text())["flannel.1"] == made.hex(":")


def test_a_mac_is_a_stations_and_locally_administered(options: NodeOptions) -> None:
    for number in range(200):
        assert vtep.mac_of(options, f"flannel.{number}")[0] & 0x03 == 0x02


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"flannel.1": 7}', '{"flannel.1": "01:00:5e:00:00:01"}'])
def test_a_damaged_file_is_made_anew(options: NodeOptions, said: io.StringIO, text: str) -> None:
    vtep.file_of(options).parent.mkdir()
    vtep.file_of(options).write_text(text)
    made = vtep.mac_of(options, "flannel.1")
    assert vtep.known(options) == {"flannel.1": made}
    assert "damaged file of VtepMACs" in said.getvalue()


def test_a_mac_that_cannot_be_kept_is_refused(options: NodeOptions) -> None:
    options.state_dir.write_text("no folder")
    with pytest.raises(UnderlayError, match=r"vtep\.json cannot be written: .*--state-dir"):
        vtep.mac_of(options, "flannel.1")


def test_a_standing_leases_macs_are_adopted_where_none_are_kept(options: NodeOptions) -> None:
    dual = config(', "EnableIPv6": true')
    assert vtep.missing(dual, options)
    vtep.keep(options, {"flannel.7": parse_mac(OTHER)})
    assert vtep.missing(dual, options)
    vtep.adopt(dual, options, told(MAC, MAC))
    assert vtep.known(options) == {"flannel.7": parse_mac(OTHER), "flannel-v6.7": parse_mac(MAC)}
    assert not vtep.missing(dual, options)


@pytest.mark.parametrize("standing", [told("nonsense"), told(MAC, kind="udp"), None])
def test_of_a_lease_that_tells_none_nothing_is_adopted(options: NodeOptions, standing: Lease | None) -> None:
    vtep.adopt(config(), options, standing)
    assert vtep.known(options) == {}


@pytest.mark.parametrize("text", ["0a:5e:00:53:00:01", "0A:5E:00:53:00:01", "0a-5e-00-53-00-01", "0a5e.0053.0001"])
def test_macs_are_read_as_go_reads_them(text: str) -> None:
    assert vtep.told_mac({"vni": 1, "vtepmac": text}) == bytes.fromhex("0a5e00530001")


@pytest.mark.parametrize(("data", "reason"), [
    (None, "tells no VtepMAC"), ({}, "tells no VtepMAC"), ([MAC], "tells no VtepMAC"),
    ({"VtepMAC": 7}, "tells no VtepMAC"),
    ({"VtepMAC": ""}, 'VtepMAC "" is no Ethernet address'),
    ({"VtepMAC": "0a:5e:00:53:00"}, 'VtepMAC "0a:5e:00:53:00" is no Ethernet address'),
    ({"VtepMAC": "0a:5e-00:53-00:01"}, 'VtepMAC "0a:5e-00:53-00:01" is no Ethernet address'),
    ({"VtepMAC": "01:00:5e:00:00:01"}, 'VtepMAC "01:00:5e:00:00:01" is not the Ethernet address of one station'),
    ({"VtepMAC": "00:00:00:00:00:00"}, 'VtepMAC "00:00:00:00:00:00" is not the Ethernet address of one station'),
])
def test_what_is_no_vtep_mac_is_refused(data: object, reason: str) -> None:
    with pytest.raises(LeaseError) as refusal:
        vtep.told_mac(data)
    assert str(refusal.value) == reason
