"""What the address families differ in, for backends that carry both: where a lease, a configuration and the external
interface keep the part of each.
"""

from __future__ import annotations

from ipaddress import IPv4Address, ip_interface
from typing import TYPE_CHECKING

from flannel_udp.errors import LeaseError, UnderlayError

if TYPE_CHECKING:
    from flannel_udp.config import NetworkConfig
    from flannel_udp.lease import Lease
    from flannel_udp.link import Address, Interface, Network
    from flannel_udp.underlay import ExternalInterface

PUBLIC = {4: "PublicIP", 6: "PublicIPv6"}
_BROADCAST = IPv4Address(0xFFFFFFFF)


def families_of(config: NetworkConfig) -> tuple[int, ...]:
    """The enabled ones, in order."""
    return tuple(family for family, on in ((4, config.enable_ipv4), (6, config.enable_ipv6)) if on)


def network_of(config: NetworkConfig, family: int) -> tuple[Network, int]:
    """The overlay network of an enabled family, and the length of its subnets."""
    network = config.network if family == 4 else config.ipv6_network
    assert network is not None
    return network, config.subnet_len if family == 4 else config.ipv6_subnet_len


def underlay_of(external: ExternalInterface, family: int) -> Address:
    """The external interface's address; UnderlayError if it has none that datagrams could leave from."""
    address = external.address if family == 4 else external.address6
    if address is None:
        raise UnderlayError(f"interface {external.name} has no IPv{family} address")
    if family == 6 and address.is_link_local:
        raise UnderlayError(f"interface {external.name} has no IPv6 address but {address}, which is good for one link "
                            "alone: give it another")
    return address


def subnet_of(lease: Lease, family: int) -> Network:
    """A lease's subnet; LeaseError if it has none of this family."""
    subnet = lease.subnet if family == 4 else lease.ipv6_subnet
    if subnet is None:
        raise LeaseError(f"has no IPv{family} subnet")
    return subnet


def tunnel_of(lease: Lease, family: int) -> Interface:
    """The device's address: the subnet's network address, alone, so that the kernel adds no routes of its own."""
    subnet = subnet_of(lease, family)
    return ip_interface(f"{subnet.network_address}/{subnet.max_prefixlen}")


def host_of(lease: Lease, family: int) -> Address:
    """The public address of a peer; LeaseError if it tells none, or one that no packet may be led to."""
    address = lease.attrs.public_ip if family == 4 else lease.attrs.public_ipv6
    if address is None:
        raise LeaseError(f"tells no {PUBLIC[family]}")
    one_link = family == 6 and address.is_link_local
    if address.is_multicast or address.is_loopback or address == _BROADCAST or one_link:
        raise LeaseError(f"{PUBLIC[family]} {address} is not the address of one host")
    return address
