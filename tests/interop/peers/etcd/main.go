// The real etcd server, built from its module, for tests and benchmarks that need one: ../build says how.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
