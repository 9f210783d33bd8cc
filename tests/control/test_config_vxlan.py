"""The vxlan backend's keys: each obeyed, or refused with a reason; and what is shown of them."""

import pytest

from flannel_udp._dataplane import VXLAN_OVERHEAD_V4, VXLAN_OVERHEAD_V6, VXLAN_PORT
from flannel_udp.config import (
    IPV4_MTU_MIN,
    IPV6_MTU_MIN,
    VNIS_MOST,
    NetworkConfig,
    VxlanConfig,
    backend_keys,
    parse_network_config,
    parse_vxlan_config,
)
from flannel_udp.errors import ConfigError


def config(keys: str = "", families: str = "") -> NetworkConfig:
    backend = f'{{"Type": "vxlan"{", " + keys if keys else ""}}}'
    return parse_network_config(f'{{"Network": "10.5.0.0/16", {families}"Backend": {backend}}}')


@pytest.mark.parametrize("keys", ["", '"Port": 0, "MTU": 0', '"VNI": null, "GBP": null, "Learning": null',
                                  '"GBP": false', '"MacPrefix": "0E-2A", "Name": "flannel.4096"'])
def test_the_defaults_are_flannels(keys: str) -> None:
    assert parse_vxlan_config(config(keys)) == VxlanConfig(1, VXLAN_PORT, None, direct_routing=False, learning=False)


def test_every_key_is_read_whatever_its_case() -> None:
    keys = '"vni": 42, "PORT": 4789, "mtu": 1400, "directrouting": true, "Learning": true'
    assert parse_vxlan_config(config(keys)) == VxlanConfig(42, 4789, 1400, direct_routing=True, learning=True)


DUAL = '"EnableIPv6": true, "IPv6Network": "fd00:5::/48", '


@pytest.mark.parametrize(("vni", "families", "name"), [
    (0, "", "flannel.{}"), (VNIS_MOST[4], "", "flannel.{}"), (VNIS_MOST[6], DUAL, "flannel-v6.{}")])
def test_a_vni_that_its_devices_name_has_room_for_is_taken(vni: int, families: str, name: str) -> None:
    assert parse_vxlan_config(config(f'"VNI": {vni}', families)).vni == vni
    assert len(name.format(vni)) <= 15
    if vni:
        assert len(name.format(vni + 1)) > 15
        with pytest.raises(ConfigError, match=f"Backend.VNI {vni + 1}: at most {vni}, for it has to fit into the name"):
            config(f'"VNI": {vni + 1}', families)


@pytest.mark.parametrize(("keys", "complaint"), [
    ('"VNI": "1"', 'Backend.VNI "1": a whole number'),
    ('"VNI": -1', "Backend.VNI -1: a whole number"),
    ('"Port": 65536', f"Backend.Port 65536: a UDP port up to 65535, or 0 for {VXLAN_PORT}"),
    (f'"MTU": {IPV4_MTU_MIN + VXLAN_OVERHEAD_V4 - 1}', f"from {IPV4_MTU_MIN + VXLAN_OVERHEAD_V4} to 65535"),
    ('"MTU": 65536', "Backend.MTU 65536: the underlay's MTU"),
    ('"GBP": true', "Backend.GBP true: this program cannot carry group policies"),
    ('"GBP": 1', "Backend.GBP 1: true or false"),
    ('"DirectRouting": "yes"', 'Backend.DirectRouting "yes": true or false'),
    ('"Learning": 0', "Backend.Learning 0: true or false"),
])
def test_what_cannot_be_obeyed_is_refused(keys: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config(keys)
    assert complaint in str(refusal.value)


def test_ipv6_needs_its_own_least_mtu_inside() -> None:
    families = '"EnableIPv6": true, "IPv6Network": "fd00:5::/48", '
    least = IPV6_MTU_MIN + VXLAN_OVERHEAD_V6
    assert parse_vxlan_config(config(f'"MTU": {least}', families)).mtu == least
    with pytest.raises(ConfigError, match=f"from {least} to 65535"):
        config(f'"MTU": {least - 1}', families)


def test_keys_are_told_with_their_defaults() -> None:
    assert backend_keys(config('"VNI": 7')) == {"vni": 7, "port": VXLAN_PORT, "mtu": None, "direct_routing": False,
                                                "learning": False}
    for kind in ("host-gw", "alloc", "wireguard"):
        text = f'{{"Network": "10.5.0.0/16", "Backend": {{"Type": "{kind}", "Port": "whatever"}}}}'
        assert backend_keys(parse_network_config(text)) == {}
