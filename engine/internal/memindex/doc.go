// Package memindex is an ordered multi-version table in memory: keys of 0 to
// 64 KiB to the positions of their versions in the log. One goroutine writes,
// any number read at the same time.
//
// # Structure
//
// Three parts share the key nodes of one arena:
//
//   - The hash side answers point lookups: 256 shards, each with a lock of its
//     own and an open-addressing table of 8-byte slots (32 bits of hash, 32
//     bits of node address). Slots lie in hash order, so a shard grows by one
//     sequential copy without looking at a single key, and the growth of one
//     shard stops nobody who uses another.
//   - The ordered side answers scans: a B+tree of three levels whose entries
//     hold the address of a node and 8 bytes of its key, taken behind the
//     bytes that all keys of the leaf share. Most comparisons therefore stay
//     inside the leaf, also when keys differ only far behind.
//   - Between them stands a ring of new keys. A key enters the hash side at
//     once and the ring with one store; a batch of keys is sorted and merged
//     into the tree later, by a goroutine that ends with its batch, or by the
//     scan that needs the keys. Inserting in random order pays for sorting in
//     cache instead of a walk down a cold tree; inserting in ascending order
//     appends.
//
// A key node holds the newest version inline; older versions form a list
// behind it. With 16-byte keys a node is half a cache line, so a lookup costs
// one line of the slot table and one of the arena.
//
// # Visibility
//
// A version is visible at a position if its Ref lies below. The caller raises
// the floor ([Table.SetFloor]) to the lowest position that any reader will
// still ask for; of the versions below it only the newest of each key is kept,
// and not even that one if it is a Delete. Pruning rides on later inserts, in
// bounded batches, so a queue of ever new keys does not grow memory.
//
// # Locks
//
// In order of acquisition: the order mutex (who may change the tree), the tree
// lock (shared by scans for one chunk, exclusive for a bounded run of merges),
// one shard lock. Two rules make lock-free reads of nodes during a scan exact:
//
//   - A node is freed only after it has left the hash under its shard's lock
//     and the tree under the tree lock, so whoever found it under one of the
//     two may read it until he lets go.
//   - Refs of one key only rise, so a Ref that reads the same before and after
//     the kind was read proves that the two belong together. Only CutFrom
//     lowers Refs, with the tree lock held.
//
// The garbage collector sees a few pointers for each 256 KiB of nodes and for
// each leaf, and none for a key.
package memindex
