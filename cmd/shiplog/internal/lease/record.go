package lease

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Leader is who has the lease, as etcd holds it.
type Leader struct {
	Node  string `json:"node"` // its node ID
	Name  string `json:"name"`
	RESP  string `json:"resp"`          // where it serves clients
	Ship  string `json:"ship"`          // where it serves followers
	Term  uint32 `json:"term"`          // of the epoch that it may begin
	Leads bool   `json:"leads"`         // it has begun the epoch: followers may come
	Next  string `json:"next,omitzero"` // the node that may take the lease over while it runs; empty: none
}

// State is what etcd holds of a group, as this node has last heard.
type State struct {
	Known    bool    // anything was heard at all
	Database string  // ID of the group's database; empty: there is none yet
	Leader   *Leader // nil: nobody has the lease
	Term     uint32  // the highest that was granted
	Eligible []string
	Listed   bool       // Eligible was ever set
	Rival    *Challenge // nil: nobody says that the leader is cut off

	lease clientv3.LeaseID // that the leader's key is attached to

	leader, term, database, eligible, rival int64 // revisions of the keys' last change; 0: not there
}

// Challenge says that a node does not reach the leader of a term, and does reach enough voters to lead in its place. It is a key of its own, attached to
// the node's session. It gives no right: the leader decides whether it makes way.
type Challenge struct {
	Node    string `json:"node"` // its node ID
	Name    string `json:"name"`
	Term    uint32 `json:"term"`    // of the leader that is to make way
	Reaches int    `json:"reaches"` // voters besides this node and the leader that have answered it
}

// MayLead reports whether the node is in the eligible set; in none nobody is.
func (s *State) MayLead(node string) bool { return slices.Contains(s.Eligible, node) }

// keys of a group below its prefix.
const (
	leaderKey   = "leader"
	termKey     = "term"
	databaseKey = "database"
	eligibleKey = "eligible"
	founderKey  = "founder"
	rivalKey    = "challenge"
)

// put takes over one key's value; nil: it was deleted.
func (s *State) put(name string, kv *mvccpb.KeyValue) error {
	var value []byte
	var revision int64
	if kv != nil {
		value, revision = kv.Value, kv.ModRevision
	}
	switch name {
	case leaderKey:
		s.Leader, s.leader, s.lease = nil, revision, 0
		if kv != nil {
			s.lease = clientv3.LeaseID(kv.Lease)
			s.Leader = new(Leader)
			if err := json.Unmarshal(value, s.Leader); err != nil {
				return fmt.Errorf("key %s: %w", name, err)
			}
		}
	case termKey:
		s.Term, s.term = 0, revision
		if kv != nil {
			n, err := strconv.ParseUint(string(value), 10, 32)
			if err != nil {
				return fmt.Errorf("key %s: %w", name, err)
			}
			s.Term = uint32(n)
		}
	case databaseKey:
		s.Database, s.database = string(value), revision
	case eligibleKey:
		s.Eligible, s.eligible, s.Listed = nil, revision, kv != nil
		if kv != nil {
			if err := json.Unmarshal(value, &s.Eligible); err != nil {
				return fmt.Errorf("key %s: %w", name, err)
			}
		}
	case rivalKey:
		s.Rival, s.rival = nil, revision
		if kv != nil {
			s.Rival = new(Challenge)
			if err := json.Unmarshal(value, s.Rival); err != nil {
				return fmt.Errorf("key %s: %w", name, err)
			}
		}
	}
	return nil
}

// deadline is until when a lease may be relied on that was granted or renewed for ttl by a request that was sent at a moment: the grantor
// counts from later, and its clock may run faster than this node's by a tenth.
func deadline(sent, ttl time.Duration) time.Duration { return sent + ttl - margin(ttl) }

// margin is the part of a lease that is not relied on.
func margin(ttl time.Duration) time.Duration { return ttl / 10 }
