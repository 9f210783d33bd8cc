// A node of the real flannel, put together from its packages: lease in etcd, backend as the network configuration says.
//
// flannel's own command cannot be built from the module proxy alone (it imports a cloud SDK that is not available), so
// this does what it does between reading its options and its end, without health checks. Rules are flannel's own too, by
// iptables or, with EnableNFTables in the network configuration, by nftables; only when asked for.
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
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
	"github.com/flannel-io/flannel/pkg/subnet/etcd"
	"github.com/flannel-io/flannel/pkg/trafficmngr"
	"github.com/flannel-io/flannel/pkg/trafficmngr/iptables"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
)

func main() {
	endpoint := flag.String("etcd-endpoint", "http://127.0.0.1:2379", "where etcd listens")
	prefix := flag.String("etcd-prefix", "/coreos.com/network", "where in etcd the network is")
	iface := flag.String("iface", "", "external interface, by name or address")
	subnetFile := flag.String("subnet-file", "/run/flannel/subnet.env", "file to write the lease to")
	ipMasq := flag.Bool("ip-masq", false, "masquerade rules")
	forward := flag.Bool("iptables-forward-rules", false, "forward rules (flannel's own default is true)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *endpoint, *prefix, *iface, *subnetFile, *ipMasq, *forward); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, endpoint, prefix, iface, subnetFile string, ipMasq, forward bool) error {
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
	if err := setRules(ctx, config, lease, ipMasq, forward); err != nil {
		return err
	}
	if err := manager.HandleSubnetFile(subnetFile, config, ipMasq, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
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

// setRules does what flanneld does with the rules of a first start: nothing is known of an earlier network.
func setRules(ctx context.Context, config *subnet.Config, lease *lease.Lease, ipMasq, forward bool) error {
	var rules trafficmngr.TrafficManager = &iptables.IPTablesManager{}
	if config.EnableNFTables {
		rules = &nftables.NFTablesManager{}
	}
	if !ipMasq && !forward {
		return nil
	}
	if err := rules.Init(ctx); err != nil {
		return err
	}
	if ipMasq {
		err := rules.SetupAndEnsureMasqRules(ctx, config.Network, ip.IP4Net{}, ip.IP4Net{},
			config.IPv6Network, ip.IP6Net{}, ip.IP6Net{}, lease, 5, false)
		if err != nil {
			return err
		}
	}
	if forward {
		rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, 5)
	}
	return nil
}
