//go:build !linux

package nettest

import (
	"context"
	"errors"
	"net"
	"os/exec"
	"testing"
)

var errLinux = errors.New("nettest: needs Linux")

// Network joins hosts. On this system there is none: [New] skips the test.
type Network struct{}

// Host is a machine of its own on the network.
type Host struct{ Name, IP string }

// New skips the test.
func New(t testing.TB) *Network {
	t.Helper()
	t.Skip(errLinux)
	return nil
}

func (n *Network) Host(string) *Host                     { return nil }           // Host adds a host.
func (n *Network) Set(_, _ *Host, _ Link)                {}                       // Set changes the link from one host to another.
func (n *Network) SetBoth(_, _ *Host, _ Link)            {}                       // SetBoth changes the links of two hosts in both directions.
func (n *Network) Heal()                                 {}                       // Heal has all links deliver everything at once.
func (n *Network) Counts() Counts                        { return Counts{} }      // Counts returns what became of the packets.
func (n *Network) CountsOf(_, _ *Host) Counts            { return Counts{} }      // CountsOf returns what became of the packets from one host to another.
func (h *Host) In(func() error) error                    { return errLinux }      // In runs fn on the host.
func (h *Host) Plug(bool) error                          { return errLinux }      // Plug turns the host's device on, or off.
func (h *Host) Start(*exec.Cmd) error                    { return errLinux }      // Start starts a command on the host.
func (h *Host) Sysctl(string, string) error              { return errLinux }      // Sysctl writes a setting of the host's network.
func (h *Host) Listen(_, _ string) (net.Listener, error) { return nil, errLinux } // Listen listens on the host.

func (h *Host) DialContext(context.Context, string, string) (net.Conn, error) { return nil, errLinux } // DialContext connects from the host.
