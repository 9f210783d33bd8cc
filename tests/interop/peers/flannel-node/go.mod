module flannel_udp/peers/flannel-node

go 1.26

require github.com/flannel-io/flannel v0.28.10
