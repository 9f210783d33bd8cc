"""flannel's node agent as a userspace TUN forwarder: the control plane. The data plane is compiled from src/."""
