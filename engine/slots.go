package engine

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"shiplog/wal"
	"shiplog/wal/vfs"
)

// A slot keeps the log for one follower, from what it has on its disk on: while it is connected, and, if it has a name,
// after that too, so that it goes on where it was. A follower that stays away is given up at MaxPinned bytes or after
// MaxPinnedAge; it then starts over at the tail when it comes back. Slots of named followers survive a restart of this node, in
// the file "slots". A lost file costs what the slots keep, nothing else.
type slots struct {
	fs   vfs.FS
	path string

	mu    sync.Mutex // guards all below
	list  []*slot
	dirty bool      // differs from the file
	saved time.Time // when the file was written last
	marks []markAt  // how the committed mark rose, for lags in time
}

// markAt is the committed mark at a time.
type markAt struct {
	at  time.Time
	lsn wal.LSN
}

type slot struct {
	id       wal.NodeID
	name     string
	durable  wal.LSN
	sessions int       // connections of it, the old one of a node that has come back included
	gone     time.Time // since when it is not connected
	goneAt   wal.LSN   // the head when it went
	led      bool      // this node led when it connected
	givenUp  string    // why nothing is kept for it any more; empty: it is
}

// SlotStats describes a slot.
type SlotStats struct {
	Name      string
	ID        wal.NodeID
	Connected bool
	From      wal.LSN       // what is kept begins here: the follower has everything below on its disk
	Bytes     int64         // that the follower lacks: from there to the head
	Pinned    int64         // of log that would be removed but for this slot, or for another that holds more
	Lag       time.Duration // since when more is committed than the follower has on its disk; zero: it has all. To some 20 ms
	Gone      time.Duration // since it is not connected
	// Left is how long the slot lasts at the rate at which the log has grown since the follower went; zero: the follower is
	// connected, or nothing was written.
	Left    time.Duration
	GivenUp string // why nothing is kept for it any more; empty: it is
}

// slotsFile is the file's name.
const slotsFile = "slots"

// slotsEvery is how often positions of slots get into the file at most: what it is behind is kept, too.
const slotsEvery = 5 * time.Second

// HoldSlot keeps the log from an LSN on for a follower that has connected. A slot under the same name passes to it.
func (db *DB) HoldSlot(id wal.NodeID, name string, from wal.LSN) {
	s := &db.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.list, func(o *slot) bool { return o.id == id || name != "" && o.name == name })
	if i < 0 {
		s.list = append(s.list, &slot{})
		i = len(s.list) - 1
	}
	o := s.list[i]
	if o.id != id {
		o.sessions = 0 // those are the other node's
	}
	o.id, o.name, o.durable, o.givenUp, o.led = id, name, from, "", !db.follower.Load()
	o.sessions++
	s.dirty, s.saved = true, time.Time{} // at once
}

// ReleaseSlot says that a connection for which HoldSlot was called has ended.
func (db *DB) ReleaseSlot(id wal.NodeID) {
	s := &db.slots
	head := db.log.Head()
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.list, func(o *slot) bool { return o.id == id && o.sessions > 0 })
	if i < 0 {
		return
	}
	o := s.list[i]
	if o.sessions--; o.sessions > 0 {
		return
	}
	if o.name == "" || o.led == db.follower.Load() { // who followed a leader that leads no more goes elsewhere
		s.list = slices.Delete(s.list, i, i+1)
		return
	}
	o.gone, o.goneAt = db.clock.now(), head
	s.dirty = true
}

// forgetGone drops the slots of followers that are not connected: this node leads no more, and they go elsewhere.
func (s *slots) forgetGone() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = slices.DeleteFunc(s.list, func(o *slot) bool { return o.sessions == 0 })
	s.dirty = true
}

// maxMarks bounds the memory of how the mark rose. When it is full, every other one is forgotten: the longer a lag, the
// less exact it is.
const maxMarks = 1024

// rise notes the committed mark, if a slot is there to lag behind it.
func (s *slots) rise(committed wal.LSN, now func() time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		s.marks = nil
		return
	}
	if n := len(s.marks); n > 0 && s.marks[n-1].lsn >= committed {
		return
	}
	if len(s.marks) >= maxMarks {
		for i := range maxMarks / 2 {
			s.marks[i] = s.marks[2*i]
		}
		s.marks = s.marks[:maxMarks/2]
	}
	s.marks = append(s.marks, markAt{now(), committed})
}

// advance notes what a follower has on its disk.
func (s *slots) advance(id wal.NodeID, durable wal.LSN) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.list {
		if o.id == id && durable > o.durable {
			o.durable, s.dirty = durable, true
		}
	}
}

// DropSlot forgets the slot of a follower that is not connected: what was kept for it alone may go, and it starts over when it comes
// back. ErrNotFound: there is none of that name.
func (db *DB) DropSlot(name string) error {
	s := &db.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.list, func(o *slot) bool { return o.name == name && name != "" })
	if i < 0 {
		return fmt.Errorf("slot %q: %w", name, ErrNotFound)
	}
	if s.list[i].sessions > 0 {
		return fmt.Errorf("%w: the follower %q is connected", ErrInvalidOption, name)
	}
	s.list = slices.Delete(s.list, i, i+1)
	s.dirty, s.saved = true, time.Time{}
	return nil
}

// Slots describes the slots, in the order of their names.
func (db *DB) Slots() []SlotStats {
	s := &db.slots
	head, tail, now := db.log.Head(), wal.LSN(db.newTail.Load()), db.clock.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]SlotStats, 0, len(s.list))
	for _, o := range s.list {
		st := SlotStats{Name: o.name, ID: o.id, Connected: o.sessions > 0, From: o.durable, GivenUp: o.givenUp}
		if head > o.durable {
			st.Bytes = int64(head - o.durable)
		}
		if i, _ := slices.BinarySearchFunc(s.marks, o.durable+1, func(m markAt, lsn wal.LSN) int { return cmp.Compare(m.lsn, lsn) }); i < len(s.marks) {
			st.Lag = max(1, now.Sub(s.marks[i].at))
		}
		if !st.Connected {
			st.Gone = max(0, now.Sub(o.gone))
			st.Left = o.left(head, st.Gone, db.opts.MaxPinned+int64(o.durable)-int64(tail), db.opts.MaxPinnedAge)
		}
		if st.Pinned = max(0, int64(tail)-int64(o.durable)); o.givenUp != "" {
			st.Pinned, st.Left = 0, 0
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b SlotStats) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// left is how long the slot of a follower that went some time ago lasts: until the tail has moved by room, if it moves as fast as
// the head has since.
func (o *slot) left(head wal.LSN, gone time.Duration, room int64, age time.Duration) time.Duration {
	left := time.Duration(0)
	if grown := int64(head - min(head, o.goneAt)); grown > 0 && gone > 0 {
		left = time.Duration(float64(max(1, room)) / float64(grown) * float64(gone))
	}
	if age > 0 {
		if rest := max(1, age-gone); left == 0 || rest < left {
			left = rest
		}
	}
	return left
}

// hold calls fn with where each slot holds the log, which else would begin at tail, and gives up those that hold more, or for
// longer, than they may.
func (s *slots) hold(db *DB, tail wal.LSN, fn func(at wal.LSN)) {
	now := db.clock.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.list {
		if o.givenUp != "" || o.durable >= tail {
			continue
		}
		held := int64(tail - o.durable)
		switch {
		case o.sessions == 0 && db.opts.MaxPinnedAge > 0 && now.Sub(o.gone) > db.opts.MaxPinnedAge:
			o.givenUp = fmt.Sprintf("its follower has been away for %v, %v are allowed", now.Sub(o.gone).Round(time.Second), db.opts.MaxPinnedAge)
		case held > db.opts.MaxPinned:
			o.givenUp = fmt.Sprintf("it held %d bytes of log, %d are allowed", held, db.opts.MaxPinned)
		default:
			fn(o.durable)
			continue
		}
		s.dirty = true
		db.opts.Logger.Error("a slot is given up: its follower will have to start over", "name", o.name, "node", o.id.String(),
			"from_lsn", o.durable.String(), "reason", o.givenUp)
	}
}

// savedSlot is a slot in the file.
type savedSlot struct {
	ID      string    `json:"node_id"`
	Name    string    `json:"name"`
	From    uint64    `json:"from_lsn"`
	Gone    time.Time `json:"gone"`
	GoneAt  uint64    `json:"gone_at_lsn"`
	GivenUp string    `json:"given_up,omitempty"`
}

// save writes the file if it is due.
func (s *slots) save(db *DB) error {
	s.mu.Lock()
	now := time.Now()
	if !s.dirty || now.Sub(s.saved) < slotsEvery {
		s.mu.Unlock()
		return nil
	}
	s.dirty, s.saved = false, now
	all := []savedSlot{}
	for _, o := range s.list {
		if o.name == "" {
			continue
		}
		gone, goneAt := o.gone, o.goneAt
		if o.sessions > 0 {
			gone, goneAt = db.clock.now(), db.log.Head()
		}
		all = append(all, savedSlot{o.id.String(), o.name, uint64(o.durable), gone, uint64(goneAt), o.givenUp})
	}
	s.mu.Unlock()
	text, err := json.MarshalIndent(all, "", "\t")
	if err == nil {
		err = vfs.ReplaceFile(s.fs, s.path, append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("save slots: %w", err)
	}
	return nil
}

// flush writes the file if it is behind.
func (s *slots) flush(db *DB) {
	s.mu.Lock()
	s.saved = time.Time{}
	s.mu.Unlock()
	s.keep(db)
}

// keep is save that only logs what goes wrong: a slot that is not in the file costs its follower a copy, no data.
func (s *slots) keep(db *DB) {
	if err := s.save(db); err != nil {
		db.opts.Logger.Error("the next restart may forget slots", "error", err)
	}
}

// load reads the file of a node that was closed.
func (s *slots) load(head wal.LSN) error {
	f, err := s.fs.OpenFile(s.path, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load slots: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	size, err := f.Size()
	if err != nil || size > maxSlotsFile {
		return errors.Join(err, fmt.Errorf("load slots: %d bytes", size))
	}
	text := make([]byte, size)
	if _, err := f.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("load slots: %w", err)
	}
	var all []savedSlot
	if err := json.Unmarshal(text, &all); err != nil {
		return fmt.Errorf("load slots: %w", err)
	}
	for _, o := range all {
		id, err := wal.ParseNodeID(o.ID)
		if err != nil || o.Name == "" || wal.LSN(o.From) > head {
			continue // a log that was replaced: the follower holds its slot again when it comes
		}
		s.list = append(s.list, &slot{id: id, name: o.Name, durable: wal.LSN(o.From), gone: o.Gone, goneAt: wal.LSN(o.GoneAt), givenUp: o.GivenUp})
	}
	return nil
}

// maxSlotsFile bounds what is read of the file, in bytes.
const maxSlotsFile = 1 << 20
