module flannel_udp/peers/flannel

go 1.26

tool github.com/containernetworking/plugins/plugins/meta/flannel

require github.com/containernetworking/plugins v0.9.1
