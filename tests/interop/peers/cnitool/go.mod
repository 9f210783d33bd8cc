module flannel_udp/peers/cnitool

go 1.26

tool github.com/containernetworking/cni/cnitool

require github.com/containernetworking/cni v1.3.1
