# The structs of wire/ as Python sees them, for tests and documents: their sizes and, laid over bytes, their fields.
#
# Not a room of the loops: it makes Python objects.

from libc.stdint cimport uint8_t

from wire.arp cimport ArpHeader
from wire.ethernet cimport EthernetHeader
from wire.icmp cimport IcmpHeader
from wire.ipv4 cimport Ipv4Header
from wire.ipv6 cimport Ipv6Extension, Ipv6Fragment, Ipv6Header
from wire.tcp cimport TcpHeader
from wire.udp cimport UdpHeader
from wire.vnet_hdr cimport VnetHeader
from wire.vxlan cimport VxlanHeader


cdef inline dict wire_sizes():
    """Return the bytes of each struct by name."""
    return {
        "ethernet": sizeof(EthernetHeader), "arp": sizeof(ArpHeader), "ipv4": sizeof(Ipv4Header),
        "ipv6": sizeof(Ipv6Header), "ipv6_extension": sizeof(Ipv6Extension), "ipv6_fragment": sizeof(Ipv6Fragment),
        "tcp": sizeof(TcpHeader), "udp": sizeof(UdpHeader), "icmp": sizeof(IcmpHeader), "vxlan": sizeof(VxlanHeader),
        "vnet_hdr": sizeof(VnetHeader),
    }


cdef inline dict wire_fields(str name, const uint8_t *at):
    """Return the fields of a struct laid over its bytes; numbers as the machine reads them. Raises ValueError."""
    cdef const EthernetHeader *ethernet = <const EthernetHeader *>at
    cdef const ArpHeader *arp = <const ArpHeader *>at
    cdef const Ipv6Header *ipv6 = <const Ipv6Header *>at
    # Arrays by hand: what Cython makes of them would end at the first zero.
    if name == "ethernet":
        return {"destination": ethernet.destination[:6], "source": ethernet.source[:6],
                "ethertype": ethernet.ethertype}
    if name == "arp":
        return {"hardware_type": arp.hardware_type, "protocol_type": arp.protocol_type,
                "hardware_length": arp.hardware_length, "protocol_length": arp.protocol_length,
                "operation": arp.operation, "sender_hardware": arp.sender_hardware[:6],
                "sender_protocol": arp.sender_protocol, "target_hardware": arp.target_hardware[:6],
                "target_protocol": arp.target_protocol}
    if name == "ipv6":
        return {"version_class_flow": ipv6.version_class_flow, "payload_length": ipv6.payload_length,
                "next_header": ipv6.next_header, "hop_limit": ipv6.hop_limit, "source": ipv6.source[:16],
                "destination": ipv6.destination[:16]}
    return wire_numbers(name, at)


cdef inline dict wire_numbers(str name, const uint8_t *at):
    """Return the fields of the structs that hold numbers alone."""
    if name == "ipv4":
        return (<const Ipv4Header *>at)[0]
    if name == "ipv6_extension":
        return (<const Ipv6Extension *>at)[0]
    if name == "ipv6_fragment":
        return (<const Ipv6Fragment *>at)[0]
    if name == "tcp":
        return (<const TcpHeader *>at)[0]
    if name == "udp":
        return (<const UdpHeader *>at)[0]
    if name == "icmp":
        return (<const IcmpHeader *>at)[0]
    if name == "vxlan":
        return (<const VxlanHeader *>at)[0]
    if name == "vnet_hdr":
        return (<const VnetHeader *>at)[0]
    raise ValueError(f"{name} is no header")
