// Package nettest is a network for tests with real processes and real TCP: each [Host] is a Linux network namespace of its own, and what one sends
// to another passes through this process packet by packet, over a [Link] for each pair and direction. A link can be cut, in one direction too,
// slow, narrow and lossy, and be changed at any time; nothing of the kernel is needed for it but namespaces and TUN devices, and no tools.
//
// It needs root and /dev/net/tun; where they are missing, [New] skips the test.
package nettest

import "time"

// Link is what happens to packets from one host to another. The zero value delivers them at once.
type Link struct {
	Cut   bool          // nothing is delivered, and the sender is not told
	Delay time.Duration // how long a packet is on its way
	Loss  float64       // share of packets that are lost, 0 to 1
	Rate  int64         // bytes a second; zero: no bound
	// Queue is how much a link with a rate holds back before it drops what comes, as the time that it takes to send it; zero: 100 ms.
	Queue time.Duration
}

// Counts are packets so far.
type Counts struct {
	Delivered, Cut, Lost, Overflowed int64 // Overflowed: the queue was full
	Bytes                            int64 // delivered, with IP headers
}

// MTU is the largest packet, in bytes.
const MTU = 1500
