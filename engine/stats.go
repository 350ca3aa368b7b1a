package engine

import (
	"time"

	"shiplog/engine/internal/index"
	"shiplog/wal"
)

// Role is what a node does in its database.
type Role uint8

// The roles.
const (
	Leader Role = iota
	Follower
)

// String gives the role's name in lower case.
func (r Role) String() string {
	if r == Follower {
		return "follower"
	}
	return "leader"
}

// Role is this node's role.
func (db *DB) Role() Role {
	if db.follower.Load() {
		return Follower
	}
	return Leader
}

// Stats is a description of the database at one moment. Marks are read one after the other.
type Stats struct {
	Database wal.DatabaseID
	Node     wal.NodeID
	Role     Role
	Epoch    wal.Epoch
	Fenced   wal.Epoch // epoch that fenced this leader; 0: none
	Rule     Level     // the newest
	// RuleChanging: a change of rule or voters is not committed yet; writes must meet the rule before it too.
	RuleChanging bool
	Voters       []wal.Voter
	Degraded     wal.LSN // start of the open degraded span; 0: none
	Tail         wal.LSN
	Head         wal.LSN
	Durable      wal.LSN
	Committed    wal.LSN
	Applied      wal.LSN // 0 with LogOnly, as Visible
	Visible      wal.LSN
	LogOnly      bool          // the node keeps the log only
	FormatLevel  uint32        // of the database, as far as this node has applied its log
	ApplyDelay   time.Duration // by how much it applies later as a follower
	Digest       wal.Digest    // of everything below DigestLSN
	DigestLSN    wal.LSN
	Loading      bool // reads answer ErrLoading
	Keys         int  // in the index, an estimate: deleted and expired ones may be counted for a while
	Index        IndexStats
	Followers    []FollowerStats
	Failed       error // why the log takes no more writes; nil: it does
}

// IndexStats describes the index.
type IndexStats = index.Stats

// FollowerStats is what the leader knows of one follower.
type FollowerStats struct {
	ID                                  wal.NodeID
	Name, Addr                          string
	Connected, Voter, Admitted          bool
	Late                                bool // its readers see later, or never, what it has: Applied does not count it
	Received, Durable, Applied, Visible wal.LSN
}

// Stats describes the database as it is now. It reads no disk.
func (db *DB) Stats() Stats {
	s := Stats{
		Role: db.Role(), Fenced: wal.Epoch(db.fenced.Load()), Node: db.log.NodeID(),
		Keys: db.idx.Len(), Index: db.idx.Stats(), Loading: !db.opts.LogOnly && db.loading() != nil, LogOnly: db.opts.LogOnly, ApplyDelay: db.opts.ApplyDelay,
	}
	if !db.log.Empty() {
		s.Database, s.Epoch = db.log.DatabaseID(), db.log.Epoch()
		s.Tail, s.Head = db.log.Tail(), db.log.Head()
		s.Durable = db.log.Durable()
		end := s.Head
		if d, err := db.log.DigestAt(end); err == nil {
			s.Digest, s.DigestLSN = d, end
		}
	}
	m := &db.marks
	s.Committed, s.Applied, s.Visible = m.committedLSN(), db.Applied(), db.Visible()
	m.mu.Lock()
	defer m.mu.Unlock()
	s.FormatLevel = m.formatLevel()
	s.RuleChanging = len(m.changes) > 0
	s.Rule, s.Voters, s.Degraded, s.Failed = Level(m.rule.Level), append([]wal.Voter(nil), m.rule.Voters...), m.degraded, m.failed
	for _, f := range m.followers {
		s.Followers = append(s.Followers, FollowerStats{
			ID: f.id, Name: f.name, Addr: f.addr, Connected: f.connected, Voter: f.voter, Admitted: f.admitted, Late: f.late,
			Received: f.received, Durable: f.durable, Applied: f.applied, Visible: f.visible,
		})
	}
	return s
}
