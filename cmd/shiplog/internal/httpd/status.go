package httpd

import "time"

// Status describes a node, as /status gives it. LSNs are bytes; times are Unix milliseconds; a lag in milliseconds of
// -1 is not known.
type Status struct {
	Version    string `json:"version"`
	NodeID     string `json:"node_id"`
	Name       string `json:"name"`
	Role       string `json:"role"` // leader or follower
	DatabaseID string `json:"database_id"`
	Epoch      string `json:"epoch"`
	HistoryID  string `json:"history_id"`
	// FormatLevel says which records may be in the log.
	FormatLevel uint32 `json:"format_level"`
	Rule        string `json:"commit_rule"`
	TooFew      string `json:"too_few"`
	Loading     bool   `json:"loading"`
	LogOnly     bool   `json:"log_only,omitempty"` // keeps the log without an index: applied_lsn and visible_lsn are 0
	// ApplyDelayMs is by how much a follower applies later on purpose.
	ApplyDelayMs int64  `json:"apply_delay_ms,omitempty"`
	FencedBy     string `json:"fenced_by,omitempty"` // epoch
	Failed       string `json:"failed,omitempty"`    // why the log takes no more writes

	Tail         uint64 `json:"tail_lsn"`
	Head         uint64 `json:"head_lsn"`
	Durable      uint64 `json:"durable_lsn"`
	Committed    uint64 `json:"committed_lsn"`
	Applied      uint64 `json:"applied_lsn"`
	Visible      uint64 `json:"visible_lsn"`
	DegradedFrom uint64 `json:"degraded_from_lsn,omitempty"`
	Digest       string `json:"digest"`
	DigestLSN    uint64 `json:"digest_lsn"`

	Keys       int64 `json:"keys"`
	IndexBytes int64 `json:"index_bytes"` // of memory
	IndexRuns  int   `json:"index_runs"`
	// IndexRunBytes is what the runs take on disk.
	IndexRunBytes int64 `json:"index_run_bytes"`
	UptimeMs      int64 `json:"uptime_ms"`

	RESPAddr string `json:"resp_addr"`
	ShipAddr string `json:"ship_addr"`

	Voters  []string `json:"voters"`
	History []Epoch  `json:"history"`
	Repairs Repairs  `json:"repairs"`
	Slots   []Slot   `json:"slots"`
	// DegradedSpans are the newest spans in which the commit rule was degraded, oldest first.
	DegradedSpans []DegradedSpan `json:"degraded_spans"`
	Followers     []Follower     `json:"followers"`
	Upstream      *Upstream      `json:"upstream,omitempty"`
	Clients       Clients        `json:"clients"`
	Lease         *Lease         `json:"lease,omitempty"`
}

// Lease is what a node knows of the lease that says who leads its group.
type Lease struct {
	Group    string   `json:"group"`
	Holder   string   `json:"holder"`   // name; empty: nobody, as far as is known
	Term     uint32   `json:"term"`     // the last that was granted
	LeftMs   int64    `json:"left_ms"`  // how long this node may still act as the leader; 0: it is none
	Eligible []string `json:"eligible"` // names of those who may lead next
}

// DegradedSpan is a stretch of the log that was acknowledged by the leader's disk alone.
type DegradedSpan struct {
	From    uint64   `json:"from_lsn"`
	To      uint64   `json:"to_lsn,omitempty"` // 0: it is open
	Began   int64    `json:"began_ms,omitempty"`
	Ended   int64    `json:"ended_ms,omitempty"`
	Reason  string   `json:"reason"`
	Missing []string `json:"missing"` // names of voters
}

// Epoch is an entry of the history.
type Epoch struct {
	Epoch     string `json:"epoch"`
	Start     uint64 `json:"start_lsn"`
	HistoryID string `json:"history_id"`
	Leader    string `json:"leader_node_id"`
}

// Follower is a connected follower.
type Follower struct {
	NodeID    string `json:"node_id"`
	Name      string `json:"name"`
	Addr      string `json:"addr"`
	Voter     bool   `json:"voter"`
	LogOnly   bool   `json:"log_only,omitempty"` // applied and visible mean nothing
	Delayed   bool   `json:"delayed,omitempty"`  // it applies later on purpose
	Sent      uint64 `json:"sent_lsn"`
	Received  uint64 `json:"received_lsn"`
	Durable   uint64 `json:"durable_lsn"`
	Applied   uint64 `json:"applied_lsn"`
	Visible   uint64 `json:"visible_lsn"`
	LagBytes  uint64 `json:"lag_bytes"` // committed and not visible there, or with log_only not on its disk, as far as it has told
	LastAckMs int64  `json:"last_ack_ms_ago"`
	RTTMicros int64  `json:"rtt_us"`
}

// Repairs is what was found damaged, and mended, since the node was started.
type Repairs struct {
	Scrubs    int64     `json:"scrubs"` // of the whole log
	LastScrub time.Time `json:"last_scrub"`
	Damaged   int64     `json:"damaged_segments"`
	Repaired  int64     `json:"repaired_segments"`
	Failed    int64     `json:"failed_repairs"`
	Bytes     int64     `json:"repaired_bytes"`
}

// Slot is what is kept for a follower.
type Slot struct {
	Name        string `json:"name"`
	NodeID      string `json:"node_id"`
	Connected   bool   `json:"connected"`
	From        uint64 `json:"from_lsn"`
	LagBytes    int64  `json:"lag_bytes"`    // not on the follower's disk
	LagMs       int64  `json:"lag_ms"`       // since when; 0: it has all
	PinnedBytes int64  `json:"pinned_bytes"` // kept for slots alone
	GoneMs      int64  `json:"gone_ms"`      // since it is not connected
	LeftMs      int64  `json:"left_ms"`      // until it is given up, at the rate since then; 0: not foreseen
	GivenUp     string `json:"given_up,omitempty"`
}

// Upstream is the node that a follower follows.
type Upstream struct {
	Addr      string `json:"addr"`
	NodeID    string `json:"node_id"`
	Name      string `json:"name"`
	Connected bool   `json:"connected"`
	// LagBytes is what is committed and not visible here, or with log_only not on its disk; -1: not connected, so that nobody knows.
	LagBytes int64 `json:"lag_bytes"`
	// FreshMs is the age, by log time, of what is served here: how long ago all that was committed then was served. While nothing is
	// written that is the age of the upstream's last word; while cut off it grows. -1: it never was.
	FreshMs int64  `json:"fresh_as_of_ms_ago"`
	Stalled bool   `json:"stalled,omitempty"` // its disk does not answer, as it says
	Error   string `json:"error,omitempty"`
	Final   bool   `json:"final,omitempty"` // it will not be tried again
}

// Clients counts the work of Redis clients.
type Clients struct {
	Connected      int   `json:"connected"`
	BufferBytes    int64 `json:"buffer_bytes"`
	Commands       int64 `json:"commands"`
	Connections    int64 `json:"connections"`
	Rejected       int64 `json:"rejected"`
	InBytes        int64 `json:"in_bytes"`
	OutBytes       int64 `json:"out_bytes"`
	KeyspaceHits   int64 `json:"keyspace_hits"`
	KeyspaceMisses int64 `json:"keyspace_misses"`
	Commits        int64 `json:"commits"`
	ProtocolErrors int64 `json:"protocol_errors"`
	Timeouts       int64 `json:"timeouts"`
}

// Digest is the answer of /digest: the digest of everything below LSN, the last end of a frame that is not above what
// was asked for.
type Digest struct {
	DatabaseID string `json:"database_id"`
	LSN        uint64 `json:"lsn"`
	Digest     string `json:"digest"`
}
