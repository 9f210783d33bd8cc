module flannel_udp/peers/portmap

go 1.26

tool github.com/containernetworking/plugins/plugins/meta/portmap

require github.com/containernetworking/plugins v1.10.0
