module flannel_udp/peers/host-local

go 1.26

tool github.com/containernetworking/plugins/plugins/ipam/host-local

require github.com/containernetworking/plugins v1.10.0
