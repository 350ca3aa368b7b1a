// Package ship sends the bytes of a log to other nodes and keeps them equal.
//
// A [Leader] accepts followers on a listener and streams the log to each of them, raw, from the segment files. A
// [Follower] dials its upstream, proves where it stands (database, history, end, digest), checks every frame
// before it is written, appends it at the same LSN, and reports what it has received, synced, applied and shown.
// The upstream may be a follower itself (cascading). Because all logs hold the same bytes at the same positions,
// the first copy, the catch-up and the live stream are one thing: bytes from an LSN on.
//
// # Terms
//
// A voter is a follower that counts for the commit rule: it is sent everything up to the leader's head. Every
// other follower is sent only what is committed and on the leader's disk. The committed mark is told in Mark
// messages, with the leader's clock and a digest of the log; a follower whose own digest differs stops with
// [ErrDigest]. An Ack carries four positions: received (in the follower's log), durable (on its disk), applied
// (in its index), visible (to its readers).
//
// # Errors
//
// Every reason why two nodes do not talk, or stop talking, has a [Code], a sentinel error, and is either final
// ([Follower.Run] returns) or retryable (it reconnects with back-off). [Error] carries the details.
//
// # Caveats
//
// Both sides prove that they know the shared secret, and control messages carry a checksum keyed by the session;
// against an adversary who sits in the network path only TLS protects. Without a secret a Leader serves loopback
// addresses only.
//
// PROTOCOL.md specifies every byte.
package ship
