package resp

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// infoSections are the sections of INFO in their order.
var infoSections = []struct {
	name  string
	write func(b *strings.Builder, s *Server, n *NodeInfo)
}{
	{"Server", infoServer},
	{"Clients", infoClients},
	{"Memory", infoMemory},
	{"Persistence", infoPersistence},
	{"Stats", infoStats},
	{"Replication", infoReplication},
	{"CPU", infoCPU},
	{"Cluster", func(b *strings.Builder, _ *Server, _ *NodeInfo) { field(b, "cluster_enabled", 0) }},
	{"Keyspace", infoKeyspace},
	{"Shiplog", infoShiplog},
}

func info(c *conn, args [][]byte) {
	wanted := map[string]bool{}
	for _, a := range args[1:] {
		wanted[strings.ToLower(string(head(a, 32)))] = true
	}
	all := len(args) == 1 || wanted["all"] || wanted["default"] || wanted["everything"]
	n := c.srv.node.Info()
	var b strings.Builder
	for _, section := range infoSections {
		if !all && !wanted[strings.ToLower(section.name)] {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		fmt.Fprintf(&b, "# %s\r\n", section.name)
		section.write(&b, c.srv, &n)
	}
	c.out.verbatim(b.String())
}

func infoServer(b *strings.Builder, s *Server, n *NodeInfo) {
	up := int64(time.Since(s.started).Seconds())
	field(b, "redis_version", redisVersion)
	field(b, "redis_mode", "standalone")
	field(b, "shiplog_version", n.Version)
	field(b, "os", runtime.GOOS+" "+runtime.GOARCH)
	field(b, "arch_bits", 32<<(^uint(0)>>63))
	field(b, "go_version", runtime.Version())
	field(b, "process_id", os.Getpid())
	field(b, "run_id", s.runID)
	field(b, "tcp_port", s.port())
	field(b, "server_time_usec", time.Now().UnixMicro())
	field(b, "uptime_in_seconds", up)
	field(b, "uptime_in_days", up/86400)
}

// port is that of the first listener.
func (s *Server) port() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ports []string
	for ln := range s.listeners {
		if _, port, err := net.SplitHostPort(ln.Addr().String()); err == nil {
			ports = append(ports, port)
		}
	}
	if len(ports) == 0 {
		return "0"
	}
	return slices.Min(ports)
}

func infoClients(b *strings.Builder, s *Server, _ *NodeInfo) {
	t := s.Stats()
	field(b, "connected_clients", t.Clients)
	field(b, "maxclients", s.maxClients.Load())
	field(b, "blocked_clients", 0)
	field(b, "client_buffer_bytes", t.ClientMemory)
}

func infoMemory(b *strings.Builder, _ *Server, _ *NodeInfo) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	field(b, "used_memory", m.HeapAlloc)
	field(b, "used_memory_rss", m.Sys-m.HeapReleased)
	field(b, "maxmemory", 0)
	field(b, "maxmemory_policy", "noeviction")
}

func infoPersistence(b *strings.Builder, _ *Server, n *NodeInfo) {
	loading := 0
	if n.Loading {
		loading = 1
	}
	field(b, "loading", loading)
	field(b, "async_loading", 0)
	field(b, "rdb_changes_since_last_save", 0)
	field(b, "rdb_bgsave_in_progress", 0)
	field(b, "rdb_last_bgsave_status", "ok")
	field(b, "aof_enabled", 1)
	field(b, "aof_rewrite_in_progress", 0)
	field(b, "aof_last_write_status", stateOf(n.Failed == "", "ok", "err"))
	field(b, "aof_current_size", n.Head-n.Tail)
}

func infoStats(b *strings.Builder, s *Server, _ *NodeInfo) {
	t := s.Stats()
	field(b, "total_connections_received", t.Connections)
	field(b, "total_commands_processed", t.Commands)
	field(b, "total_net_input_bytes", t.InBytes)
	field(b, "total_net_output_bytes", t.OutBytes)
	field(b, "rejected_connections", t.Rejected)
	field(b, "keyspace_hits", t.KeyspaceHits)
	field(b, "keyspace_misses", t.KeyspaceMisses)
	field(b, "evicted_keys", 0)
	field(b, "pubsub_channels", s.hub.count(false))
	field(b, "pubsub_patterns", s.hub.count(true))
	field(b, "client_output_buffer_limit_disconnections", t.SlowSubscribers)
	field(b, "client_protocol_errors", t.ProtocolErrors)
	field(b, "client_timeouts", t.Timeouts)
}

// infoReplication has the fields that tools read; offsets are LSNs.
func infoReplication(b *strings.Builder, s *Server, n *NodeInfo) {
	offset := n.Head
	if n.Leader {
		field(b, "role", "master")
	} else {
		field(b, "role", "slave")
		infoUpstream(b, s, n)
	}
	field(b, "connected_slaves", len(n.Replicas))
	if n.Leader {
		field(b, "min_slaves_good_slaves", len(n.Replicas))
	}
	for i, r := range n.Replicas {
		fmt.Fprintf(b, "slave%d:ip=%s,port=%s,state=%s,offset=%d,lag=%d,name=%s,node_id=%s,voter=%s,log_only=%s,delayed=%s,sent=%d,durable=%d,applied=%d\r\n",
			i, r.Host, r.Port, r.State, r.Received, max(0, int64(r.Lag.Seconds())), r.Name, r.NodeID, yesNo(r.Voter), yesNo(r.LogOnly), yesNo(r.Delayed), r.Sent, r.Durable, r.Applied)
	}
	field(b, "master_failover_state", cmp.Or(n.FailoverState, "no-failover"))
	field(b, "master_replid", n.replicationID())
	field(b, "master_replid2", strings.Repeat("0", 40))
	field(b, "master_repl_offset", offset)
	field(b, "second_repl_offset", -1)
	field(b, "repl_backlog_active", 1)
	field(b, "repl_backlog_size", offset-n.Tail)
	field(b, "repl_backlog_first_byte_offset", n.Tail)
	field(b, "repl_backlog_histlen", offset-n.Tail)
}

func infoUpstream(b *strings.Builder, s *Server, n *NodeInfo) {
	up := n.Upstream
	if up == nil {
		up = &Upstream{}
	}
	lastIO := int64(-1)
	if up.Connected && !up.LastIO.IsZero() {
		lastIO = int64(time.Since(up.LastIO).Seconds())
	}
	field(b, "master_host", up.Host)
	field(b, "master_port", up.Port)
	field(b, "master_link_status", stateOf(up.Connected, "up", "down"))
	field(b, "master_last_io_seconds_ago", lastIO)
	field(b, "master_sync_in_progress", 0)
	field(b, "slave_read_repl_offset", n.Head)
	field(b, "slave_repl_offset", n.Applied)
	if !up.Connected {
		down := int64(-1)
		if !up.DownSince.IsZero() {
			down = int64(time.Since(up.DownSince).Seconds())
		}
		field(b, "master_link_down_since_seconds", down)
	}
	field(b, "slave_priority", n.priority(s.priority.Load()))
	field(b, "slave_read_only", 1)
	field(b, "replica_announced", 1)
}

// priority is what Sentinel is told: 0, never to be promoted, where a promotion would fail, or undo what the node is there for.
func (n *NodeInfo) priority(set int64) int64 {
	if n.LogOnly || n.ApplyDelay > 0 {
		return 0
	}
	return set
}

// replicationID is what Redis calls the history: 40 hex digits. Here it is the database and the history ID.
func (n *NodeInfo) replicationID() string {
	id := n.DatabaseID + n.HistoryID
	if len(id) > 40 {
		id = id[:40]
	}
	return id + strings.Repeat("0", 40-len(id))
}

func infoKeyspace(b *strings.Builder, _ *Server, n *NodeInfo) {
	if n.Keys > 0 {
		fmt.Fprintf(b, "db0:keys=%d,expires=0,avg_ttl=0\r\n", n.Keys)
	}
}

func infoShiplog(b *strings.Builder, _ *Server, n *NodeInfo) {
	field(b, "database_id", n.DatabaseID)
	field(b, "node_id", n.NodeID)
	field(b, "node_name", n.Name)
	field(b, "epoch", n.Epoch)
	field(b, "history_id", n.HistoryID)
	field(b, "log_only", yesNo(n.LogOnly))
	field(b, "apply_delay_ms", n.ApplyDelay.Milliseconds())
	field(b, "format_level", n.FormatLevel)
	field(b, "commit_rule", n.Rule)
	field(b, "too_few", n.TooFew)
	field(b, "tail_lsn", n.Tail)
	field(b, "head_lsn", n.Head)
	field(b, "durable_lsn", n.Durable)
	field(b, "committed_lsn", n.Committed)
	field(b, "applied_lsn", n.Applied)
	field(b, "visible_lsn", n.Visible)
	field(b, "digest", n.Digest)
	field(b, "digest_lsn", n.DigestLSN)
	field(b, "degraded_from_lsn", n.DegradedFrom)
	field(b, "degraded_spans", len(n.DegradedSpans))
	for i, s := range n.DegradedSpans {
		field(b, fmt.Sprint("degraded_span", i), s)
	}
	field(b, "failed", n.Failed)
	field(b, "ship_addr", n.ShipAddr)
	field(b, "http_addr", n.HTTPAddr)
	infoRepairs(b, &n.Repairs)
	field(b, "slots", len(n.Slots))
	for i, s := range n.Slots {
		field(b, fmt.Sprint("slot", i), s)
	}
	if n.Upstream != nil {
		field(b, "lag_bytes", n.Upstream.LagBytes)
		field(b, "lag_ms", n.Upstream.LagMs)
		field(b, "upstream_error", n.Upstream.Reason)
	}
}

func infoRepairs(b *strings.Builder, r *Repairs) {
	field(b, "scrubs", r.Scrubs)
	last := int64(-1)
	if !r.LastScrub.IsZero() {
		last = int64(time.Since(r.LastScrub).Seconds())
	}
	field(b, "last_scrub_seconds_ago", last)
	field(b, "damaged_segments", r.Damaged)
	field(b, "repaired_segments", r.Repaired)
	field(b, "failed_repairs", r.Failed)
	field(b, "repaired_bytes", r.Bytes)
}

func randomHex(n int) string {
	p := make([]byte, n)
	rand.Read(p) // never fails
	return hex.EncodeToString(p)
}
