// Package resp serves a key-value store to Redis clients, over RESP2 and RESP3.
//
// The replies, error texts and protocol limits are Redis's, so that redis-cli, redis-benchmark and the client
// libraries work unchanged. The store is anything that implements the small [Store] interface; what the server
// tells about the node around it comes from a [Node].
//
// # Pipelines
//
// A connection's commands are answered in order. Consecutive writes of one pipeline are gathered into a run, and a
// run is one commit: one wait, one durable sync. Runs of plain writes go to the store as a batch, side by side with
// those of other connections. A run with a command whose answer depends on the data (SETNX, INCR, DEL and so on)
// goes through a combiner, which decides the runs of all connections one after the other inside one transaction,
// so that clients which fight for one key share a commit instead of retrying against each other. A read commits the
// run before it, and so sees it.
//
// # Transactions
//
// MULTI, EXEC, DISCARD, WATCH and UNWATCH are Redis's: an EXEC is one transaction of the store, decided in the order of the
// log, and answered once all that it was decided on is visible. One that only writes is a part of the run, like any write. Commands in it that are not about data (CONFIG, REPLICAOF, CLIENT KILL)
// are executed when the rest is committed. If that fails, the answer is EXECABORT with the reason, and nothing of it was
// executed, or UNKNOWNOUTCOME when nobody can know.
//
// Commands that read several keys read one snapshot. Expiry is judged by the store's time.
//
// # Messages
//
// PUBLISH reaches those who have subscribed on this node. A subscriber's messages are written by a goroutine of its own, between
// whole replies. One that does not read is disconnected once too much waits for it.
//
// # Limits
//
// Everything that a client controls is bounded before memory is spent on it: the length of an argument, the number
// of arguments, the bytes buffered for one connection and for all of them, the time that a half-sent command or an
// unread reply may take. The parser of github.com/tidwall/redcon, which takes the length fields on trust, sees a
// command only once the scanner of this package has found it complete and within these limits.
package resp
