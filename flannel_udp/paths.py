"""Where the daemon keeps its files unless it is told otherwise; who only asks it finds it there."""

from pathlib import Path

DEFAULT_RUN_DIR = Path("/run/flannel-udp")
DEFAULT_STATE_DIR = Path("/var/lib/flannel-udp")
SOCKET_NAME = "control.sock"  # below the run directory
DEFAULT_SUBNET_FILE = Path("/run/flannel/subnet.env")
