"""subnet.env: flannel's bytes, whole or not at all, and tolerant reading."""

import os
import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from flannel_udp.errors import SubnetEnvError
from flannel_udp.subnet_env import PluginEnv, SubnetEnv, plugin_env, read_subnet_env, write_subnet_env

V4 = SubnetEnv(IPv4Network("10.5.0.0/16"), IPv4Network("10.5.52.0/24"), mtu=1472)
DUAL = SubnetEnv(IPv4Network("10.5.0.0/16"), IPv4Network("10.5.52.0/24"), IPv6Network("fd00:12::/32"),
                 IPv6Network("fd00:12:13::/56"), 1450, True)
V4_TEXT = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
DUAL_TEXT = ("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPV6_NETWORK=fd00:12::/32\n"
             "FLANNEL_IPV6_SUBNET=fd00:12:13::1/56\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n")


@pytest.mark.parametrize(("env", "text"), [(V4, V4_TEXT), (DUAL, DUAL_TEXT)], ids=["v4", "dual"])
def test_written_as_flannel_writes_it_and_read_back(tmp_path: Path, env: SubnetEnv, text: str) -> None:
    path = tmp_path / "flannel" / "subnet.env"
    old = os.umask(0o077)
    try:
        write_subnet_env(path, env)
    finally:
        os.umask(old)
    assert path.read_bytes() == text.encode()
    assert path.stat().st_mode & 0o7777 == 0o644
    assert read_subnet_env(path) == env


def test_only_ipv6_says_nothing_of_ipv4(tmp_path: Path) -> None:
    env = SubnetEnv(ipv6_network=DUAL.ipv6_network, ipv6_subnet=DUAL.ipv6_subnet, mtu=1452)
    write_subnet_env(tmp_path / "subnet.env", env)
    assert "FLANNEL_NETWORK" not in (tmp_path / "subnet.env").read_text()
    assert read_subnet_env(tmp_path / "subnet.env") == env


def test_folder_is_open_to_readers(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        write_subnet_env(tmp_path / "a" / "b" / "subnet.env", V4)
    finally:
        os.umask(old)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o7777 == 0o755


def test_rewriting_replaces_the_file_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_subnet_env(path, V4)
    with path.open() as reader:  # who reads the old one reads it to its end
        write_subnet_env(path, DUAL)
        assert reader.read() == V4_TEXT
    assert path.read_text() == DUAL_TEXT
    assert list(tmp_path.iterdir()) == [path]


def test_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "subnet.env"
    write_subnet_env(path, V4)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_subnet_env(path, DUAL)
    assert path.read_text() == V4_TEXT
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("text", "subnet"), [
    ("", None),
    ("FLANNEL_SUBNET=10.5.52.1/24", "10.5.52.0/24"),
    ("  export FLANNEL_SUBNET = '10.5.52.1/24'  # the bridge", "10.5.52.0/24"),
    ('# a comment\nnonsense\n=\nFLANNEL_SUBNET="10.5.52.1/24"\nOTHER="open', "10.5.52.0/24"),
    ("FLANNEL_SUBNET=10.5.52.1/24,10.5.53.1/24", None),
    ("FLANNEL_SUBNET=10.5.52.1", None),
    ("FLANNEL_SUBNET=10.5.52.1/33", None),
    ("FLANNEL_SUBNET=fd00::1/64", None),
    ("FLANNEL_SUBNET=10.5.52.1/24 and more", None),
    ("\x00\udcff", None),
])
def test_reading_takes_what_it_understands(tmp_path: Path, text: str, subnet: str | None) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert read_subnet_env(path) == SubnetEnv(subnet=IPv4Network(subnet) if subnet else None)


def test_missing_file_is_an_empty_one(tmp_path: Path) -> None:
    assert read_subnet_env(tmp_path / "none") == SubnetEnv()
    assert read_subnet_env(tmp_path) == SubnetEnv()


# -- as the CNI plugin reads it ---------------------------------------------------------------------------------------


def wanted(path: Path, text: str) -> PluginEnv:
    path.write_text(text)
    return plugin_env(path)


def test_the_plugin_reads_what_the_daemon_writes(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    write_subnet_env(path, DUAL)
    assert plugin_env(path) == PluginEnv((DUAL.network, DUAL.ipv6_network), (DUAL.subnet, DUAL.ipv6_subnet), 1450, True)  # type: ignore[arg-type]


def test_several_networks_each_once(tmp_path: Path) -> None:
    env = wanted(tmp_path / "env", V4_TEXT.replace("10.5.0.0/16", "10.5.0.0/16,10.6.0.0/16,10.5.0.0/16"))
    assert [str(network) for network in env.networks] == ["10.5.0.0/16", "10.6.0.0/16"]


@pytest.mark.parametrize(("old", "new", "told"), [
    ("FLANNEL_NETWORK=10.5.0.0/16\n", "", "lacks FLANNEL_NETWORK or FLANNEL_IPV6_NETWORK"),
    ("FLANNEL_SUBNET=10.5.52.1/24", "FLANNEL_SUBNET", "lacks FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET"),
    ("FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n", "", "lacks FLANNEL_MTU, FLANNEL_IPMASQ"),
    ("10.5.0.0/16", "10.5.0.0/33", "FLANNEL_NETWORK='10.5.0.0/33' is not an IPv4 network"),
    ("10.5.0.0/16", "10.5.0.0/16,", "FLANNEL_NETWORK='10.5.0.0/16,' is not an IPv4 network"),
    ("10.5.52.1/24", "10.5.52.1", "FLANNEL_SUBNET='10.5.52.1' has no prefix length"),
    ("10.5.52.1/24", "10.5.52.1/24,10.5.53.1/24", "FLANNEL_SUBNET='10.5.52.1/24,10.5.53.1/24' is not an IPv4 network"),
    ("10.5.52.1/24", "fd00::1/64", "FLANNEL_SUBNET='fd00::1/64' is not an IPv4 network"),
    ("1472", "-1", "FLANNEL_MTU='-1' is not a number from 0 to 65535"),
    ("1472", "65536", "FLANNEL_MTU='65536' is not a number"),
    ("1472", "9" * 5000, "is not a number from 0"),
    ("=false", "=no", "FLANNEL_IPMASQ='no' is neither true nor false"),
])
def test_the_plugin_is_told_what_is_wrong(tmp_path: Path, old: str, new: str, told: str) -> None:
    assert old in V4_TEXT
    with pytest.raises(SubnetEnvError, match=re.escape(told)) as caught:
        wanted(tmp_path / "env", V4_TEXT.replace(old, new))
    assert "\n" not in str(caught.value)
