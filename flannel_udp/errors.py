"""The exceptions of flannel_udp: one tree, so that a caller can catch as widely or as narrowly as it means to.

FlannelUdpError                 every error that is somebody's to mend; str() is the one line that the user reads
├── UsageError                  a flag or environment variable that cannot be obeyed (exit status 2)
├── ConfigError                 flannel's network configuration: which key, which value, what would be right
├── RegistryError               where leases live
│   ├── RegistryUnavailable     cannot be reached or opened; may work later
│   │   └── RegistryRefused     answered that it will not: it is full, or who asks may not; nothing was done
│   ├── NoConfig                holds no network configuration yet
│   ├── Conflict                compare-and-swap found another revision than expected
│   └── Compacted               the revision to watch from is gone: take a new snapshot
├── LeaseError                  a lease that cannot be read, acquired or kept
│   └── OutOfSubnets            every subnet of the range is leased or reserved
├── UnderlayError               no external interface, no address, no socket
├── TunError                    the TUN device cannot be opened or configured
├── NetlinkError                the kernel refused a link, an address or a route
├── ControlError                the control socket: no daemon there, or an answer that makes no sense
├── HealthError                 the health server cannot listen
├── InstanceError               another instance holds the same state or run directory
├── FirewallError               nft or iptables is missing, or refused a rule
├── TakeoverError               flannel itself still runs on this host
├── SubnetEnvError              subnet.env is missing or cannot be read, or what the CNI plugin needs is not there
├── PluginError                 the CNI plugin cannot be installed
└── LabError                    the lab cannot be built, found or entered

Fault is none of them: no user can mend what the program did not expect.
"""

from __future__ import annotations

from flannel_udp.named import NamedTuple


class Fault(NamedTuple):
    """An error that a thread does not know ended it. It is posted to the owner, who raises it."""

    thread: str
    error: Exception


class FlannelUdpError(Exception):
    """The root of the tree; its text is one line for the user."""


class UsageError(FlannelUdpError):
    """A flag or environment variable cannot be obeyed."""


class ConfigError(FlannelUdpError):
    """flannel's network configuration is wrong."""


class RegistryError(FlannelUdpError):
    """The registry of leases failed."""


class RegistryUnavailable(RegistryError):
    """The registry cannot be reached now."""


class RegistryRefused(RegistryUnavailable):
    """The registry answered, and will not."""


class NoConfig(RegistryError):
    """The registry holds no network configuration."""


class Conflict(RegistryError):
    """A compare-and-swap found another revision than the expected one."""


class Compacted(RegistryError):
    """The changes since the asked-for revision are no longer kept."""


class LeaseError(FlannelUdpError):
    """A lease cannot be read, acquired or kept."""


class OutOfSubnets(LeaseError):
    """No free subnet is left in the configured range."""


class UnderlayError(FlannelUdpError):
    """The external interface or the underlay socket cannot be had."""


class TunError(FlannelUdpError):
    """The TUN device cannot be opened or configured."""


class NetlinkError(FlannelUdpError):
    """The kernel refused a change to links, addresses or routes."""


class ControlError(FlannelUdpError):
    """The control socket did not give a usable answer."""


class HealthError(FlannelUdpError):
    """The health server cannot listen."""


class InstanceError(FlannelUdpError):
    """Another instance uses the same directories."""


class FirewallError(FlannelUdpError):
    """The host's firewall cannot be had, or refused a rule."""


class TakeoverError(FlannelUdpError):
    """flannel itself runs here, for the same network."""


class SubnetEnvError(FlannelUdpError):
    """subnet.env does not say what a container needs."""


class PluginError(FlannelUdpError):
    """The CNI plugin cannot be installed."""


class LabError(FlannelUdpError):
    """The lab cannot be built, found or entered."""
