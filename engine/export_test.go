package engine

import (
	"context"
	"sync"

	"shiplog/wal"
)

// Queued is how many commits wait to be taken into a group.
func (db *DB) Queued() int {
	db.pipe.mu.Lock()
	defer db.pipe.mu.Unlock()
	return len(db.pipe.queue)
}

// FreezeEvery makes databases opened from then on freeze their index's table after n versions, so that small tests have runs on
// disk; 0 is by size, as ever. It returns a function that puts the old value back.
func FreezeEvery(n int) (restore func()) {
	old := freezeEvery.Swap(int64(n))
	return func() { freezeEvery.Store(old) }
}

// Indexed reports whether the index has a version of key, visible or not.
func (db *DB) Indexed(key string) bool {
	_, ok, err := db.idx.Latest([]byte(key))
	return ok && err == nil
}

// Followed is the end of what this node has applied of its log: control records alone where it keeps the log only.
func (db *DB) Followed() wal.LSN { return db.marks.indexedLSN() }

// KnowFormat has this process be of a build that knows format levels up to a level. It returns a function that puts the old value back.
func KnowFormat(level uint32) (restore func()) {
	old := knownFormat.Swap(level)
	return func() { knownFormat.Store(old) }
}

// ForgetCommits empties the pool of commits: a bubble must neither find nor leave channels of another's.
func ForgetCommits() { commitPool = sync.Pool{New: commitPool.New} }

// Relocate does the first half of that: it writes again what lives below the LSN that it returns.
func (db *DB) Relocate() (wal.LSN, error) {
	tail := db.tail()
	end := db.stretch(tail, db.log.Head(), 1)
	return end, (&reclaimer{db: db}).relocate(context.Background(), tail, end)
}

// MoveTail records that the log begins at to.
func (db *DB) MoveTail(to wal.LSN) error { return db.moveTail(to) }

// Reclaim does with the oldest segments what the reclaimer does, whatever the bounds say. It reports whether the log had any to give up.
func (db *DB) Reclaim() (bool, error) {
	tail := db.tail()
	end := db.stretch(tail, db.log.Head(), 1)
	if end <= tail {
		return false, nil
	}
	return true, (&reclaimer{db: db}).giveUp(context.Background(), tail, end)
}

// BoundLog says up to where the log may grow before writes wait; 0: without bound.
func (db *DB) BoundLog(end wal.LSN) { db.boundLog(end) }

// Trim removes the segments that tail records have given up.
func (db *DB) Trim() { db.trim() }

// QuorumMet reports whether promises of the nodes in votes are enough to lead after an epoch of last under a rule.
func QuorumMet(rule wal.Rule, last wal.NodeID, votes []wal.NodeID) bool {
	var v []NodeVote
	for _, id := range votes {
		v = append(v, NodeVote{Node: wal.Voter{ID: id}, Vote: Vote{Granted: true}})
	}
	return newQuorum(rule, last).met(v)
}

// SupportOf is what a node and those that have answered it are enough for after an epoch of last under a rule.
func SupportOf(rule wal.Rule, last, self wal.NodeID, answered []wal.NodeID) Support {
	return support([]quorum{newQuorum(rule, last)}, self, answered)
}

// Furthest is the node whose vote says that it has most.
func Furthest(votes []NodeVote) wal.NodeID { return furthest(votes).Node.ID }

// Relocation reads what lives under keys, as reclaim does, and returns what appends it again.
func (db *DB) Relocation(keys ...string) (appendAgain func() error, err error) {
	var group []candidate
	var records []byte
	var ends []int
	var buf wal.Buffer
	for _, key := range keys {
		v, _, err := db.idx.Latest([]byte(key))
		if err != nil {
			return nil, err
		}
		ref := wal.Ref(v.Ref)
		err = db.log.ReadRecord(ref, &buf, func(p []byte) error {
			rec, _, err := DecodeRecord(p)
			rec.Orig, rec.Last = ref, false
			records = AppendRecord(records, rec)
			return err
		})
		if err != nil {
			return nil, err
		}
		group, ends = append(group, candidate{[]byte(key), ref}), append(ends, len(records))
	}
	return func() error { return db.appendRelocated(context.Background(), group, records, ends) }, nil
}

// RecordKey is the key of an encoded record.
func RecordKey(p []byte) []byte { return recordKey(p) }

// IndexOverfull reports whether the index has no room for more.
func (db *DB) IndexOverfull() bool { return db.indexOverfull() }

// SetCold makes the next iterator believe that what it reads comes from the disk.
func (db *DB) SetCold() { db.cold.Store(true) }

// IndexTail is the LSN below which the index takes everything for dead.
func (db *DB) IndexTail() wal.LSN { return db.idx.Tail() }
