// Package engine is an ordered key-value store whose only primary storage is a log (package wal):
// an index maps each key to the positions of its versions in the log, and is rebuilt from it. It is kept in
// memory and, beyond Options.MemIndexSize, in sorted runs on disk.
//
// Package ship copies the log to followers: a DB is given to ship.NewLeader where writes are taken, and one that was
// opened with Options.Follower to ship.NewFollower; its package example is the whole of it, promotion included. The
// methods of DB that implement interfaces of package ship (AdmitPeer, PeerAck, FollowMark, HoldSlot, CutLog, LendRead and
// their like) are called by it, and by nobody else.
//
// The vocabulary: a DB takes Batches through one commit pipeline; a write becomes visible, to
// everybody at once and in log order, when the commit rule of the database holds for it, and the
// call returns when its Level holds too. Snapshot and Iterator read one position; Update runs
// optimistic transactions; Changes follows the committed operations. A Position, epoch and LSN, is
// the receipt of a write: WaitApplied and Outcome take it on every node.
//
// Nothing that a reader gets was left unchecked: each value is verified against its frame's checksum
// on that read. See DESIGN.md beside this file for the decisions.
package engine
