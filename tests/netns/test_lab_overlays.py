"""The lab with the vxlan backend, with IPv6 and with both families: what it shows is what there is."""

from collections.abc import Iterator

import pytest

from flannel_udp._dataplane import VXLAN_PORT
from flannel_udp.lab.client import Lab

from .labs import lab, named_lab, run_at, up


@pytest.fixture(scope="module")
def dressed() -> Iterator[str]:
    """The name of a lab of two nodes with the vxlan backend and both families."""
    with named_lab() as name:
        up(name, "--backend", "vxlan", "--dual-stack")
        yield name


def test_both_families_are_in_the_status_and_reach_the_other_pod(dressed: str) -> None:
    shown = lab("status", "--name", dressed)
    assert {"ADDRESS", "IPV6", "SUBNET", "POD"} <= set(shown.stdout.split())
    first, second = Lab(dressed).status()["nodes"]
    assert (first["address"], first["ipv6_address"]) == ("192.0.2.1", "2001:db8::1")
    assert all(str(value) in shown.stdout for state in (first, second) for value in state.values())
    for pod in (second["pod"], second["ipv6_pod"]):
        pinged = run_at(dressed, "node1 --pod", "ping", "-n", "-c", "1", "-W", "5", pod)
        assert "ttl=62" in pinged.stdout, pinged.stdout


def test_packet_shows_the_two_headers_of_vxlan_in_both_families(dressed: str) -> None:
    shown = lab("packet", "--name", dressed, "1", "2")
    assert shown.returncode == 0, shown.stderr
    four, six = shown.stdout.split("\n\nThe inner packet")
    for text, inner, ethertype, worn in (
        (four, "ICMP", "0x0800 (IPv4)", "Ethernet 14, IPv4 20, UDP 8, VXLAN 8, Ethernet 14"),
        (six, "ICMPv6", "0x86dd (IPv6)", "Ethernet 14, IPv6 40, UDP 8, VXLAN 8, Ethernet 14"),
    ):
        lines = [line.strip() for line in text.splitlines()]
        assert sum(line.startswith(f"{inner}  [") for line in lines) == 2
        assert any(line.startswith("VXLAN  [8 bytes from") for line in lines)
        assert any(line.endswith(f"destination port     {VXLAN_PORT}") for line in lines)
        assert any(line.endswith("flags                0x08 (I: the VNI is valid)") for line in lines)
        assert any(line.endswith("VNI                  1") for line in lines)
        assert sum(line.endswith(f"type                 {ethertype}") for line in lines) == 2
        assert worn in text
        assert "what changed is: nothing." in text
    assert "wrong" not in shown.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "vxlan"), ("VXLAN  [8 bytes", "ttl=62", "from VtepMAC", "Destination Net Unreachable")),
        (("--ipv6",), ("flannel udp", "ttl=60", "hop limit went from", "No route", "no_route 0 -> 1")),
        (("--backend", "vxlan", "--dual-stack"), (", IPv4 ─", ", IPv6 ─", "Net Unreachable", "No route", "0 -> 2")),
    ],
)
def test_demo_of_another_overlay_is_satisfied_too(words: tuple[str, ...], said: tuple[str, ...]) -> None:
    done = lab("demo", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    for expected in said:
        assert expected in done.stdout
