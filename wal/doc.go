// Package wal is an append-only log of checksummed, compressed frames in fixed-size, memory-mapped segment
// files. It is the only primary storage of shiplog, and useful alone as a log library: open, append, sync, read
// at a position, iterate, follow the live end, copy raw bytes, truncate, trim, verify.
//
// A [Log] is a directory. Positions in it are byte positions ([LSN]); the unit of append, checksum, compression
// and shipping is the frame; what a caller appends is a [Batch] of records, which comes back whole or not at
// all. Frames are bound to their position and to the database by their checksum, so that two copies of one log
// hold the same bytes at the same positions and either can check what it takes from the other.
//
// What is durable is explicit: [Log.Append] makes nothing durable; [Log.Sync] returns only after the operating system has
// confirmed that the bytes are on disk; [Log.Durable] is the position below which this holds. The first failed
// sync is final: the log turns read-only ([ErrPoisoned]) until it is opened again, and recovery then rewrites
// whatever was not known to be durable before it counts as such.
//
// One goroutine at a time appends (calls are serialised); any number of goroutines read meanwhile without
// taking the appender's lock. Files are described byte by byte in FORMAT.md beside this package.
package wal
