module flannel_udp/peers/bridge

go 1.26

tool github.com/containernetworking/plugins/plugins/main/bridge

require github.com/containernetworking/plugins v1.10.0
