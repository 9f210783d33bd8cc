// A node of wireguard-go, put together from its packages as its own command is, but for the way it is configured.
//
// Its own command waits for `wg` at a socket under /var/run; this one makes its key itself, prints the public one, and reads
// the rest from its standard input in the same language (https://www.wireguard.com/xplatform/). It ends with that input.
package main

import (
	"bufio"
	"crypto/ecdh"
	"crypto/rand"
	"flag"
	"fmt"
	"log"
	"os"
	"strings"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

func main() {
	name := flag.String("device", "wg0", "name of the TUN device to make")
	flag.Parse()
	if err := run(*name); err != nil {
		log.Fatal(err)
	}
}

func run(name string) error {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	link, err := tun.CreateTUN(name, device.DefaultMTU)
	if err != nil {
		return err
	}
	node := device.NewDevice(link, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, name+" "))
	defer node.Close()
	if err := node.IpcSet(fmt.Sprintf("private_key=%x\n", key.Bytes())); err != nil {
		return err
	}
	fmt.Printf("%x\n", key.PublicKey().Bytes())
	return configure(node)
}

// configure hands on each block of lines, up to an empty one, and answers it with "up" when the device is.
func configure(node *device.Device) error {
	var block strings.Builder
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if lines.Text() != "" {
			fmt.Fprintln(&block, lines.Text())
			continue
		}
		if err := node.IpcSet(block.String()); err != nil {
			return err
		}
		if err := node.Up(); err != nil {
			return err
		}
		fmt.Println("up")
		block.Reset()
	}
	return lines.Err()
}
