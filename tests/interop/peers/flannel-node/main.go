// A node of the real flannel, put together from its packages: lease in etcd, backend as the network configuration says.
//
// flannel's own command cannot be built from the module proxy alone (it imports a cloud SDK that is not available), so
// this does what it does between reading its options and its end, without masquerading and health checks.
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/hostgw"
	_ "github.com/flannel-io/flannel/pkg/backend/udp"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan"
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
)

func main() {
	endpoint := flag.String("etcd-endpoint", "http://127.0.0.1:2379", "where etcd listens")
	prefix := flag.String("etcd-prefix", "/coreos.com/network", "where in etcd the network is")
	iface := flag.String("iface", "", "external interface, by name or address")
	subnetFile := flag.String("subnet-file", "/run/flannel/subnet.env", "file to write the lease to")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *endpoint, *prefix, *iface, *subnetFile); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, endpoint, prefix, iface, subnetFile string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	store := &etcd.EtcdConfig{Endpoints: []string{endpoint}, Prefix: prefix}
	manager, err := etcd.NewLocalManager(ctx, store, ip.IP4Net{}, ip.IP6Net{}, 60)
	if err != nil {
		return err
	}
	config, err := manager.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	external, err := ipmatch.LookupExtIface(iface, "", "", stack, ipmatch.PublicIPOpts{})
	if err != nil {
		return err
	}
	chosen, err := backend.NewManager(ctx, manager, external).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	network, err := chosen.RegisterNetwork(ctx, &running, config)
	if err != nil {
		return err
	}
	lease := network.Lease()
	if err := manager.HandleSubnetFile(subnetFile, config, false, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return err
	}
	running.Add(1)
	go func() {
		defer running.Done()
		network.Run(ctx)
	}()
	if err := manager.CompleteLease(ctx, lease, &running); err != nil {
		log.Print(err)
		cancel() // the lease was revoked: flannel's command ends, too, and with status 0
	}
	running.Wait()
	return nil
}
