package httpd

import "github.com/prometheus/client_golang/prometheus"

// collector makes the metrics from a Status at each scrape, so that nothing is counted on a hot path.
type collector struct {
	source Source
	node   []gauge
	peer   []peerGauge
	slot   []slotGauge
	info   *prometheus.Desc
	up     *prometheus.Desc
	lag    *prometheus.Desc
	fresh  *prometheus.Desc
}

type gauge struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(s *Status) float64
}

type peerGauge struct {
	desc  *prometheus.Desc
	value func(f *Follower) float64
}

type slotGauge struct {
	desc  *prometheus.Desc
	value func(o *Slot) float64
}

func newCollector(source Source) *collector {
	c := &collector{
		source: source,
		info:   prometheus.NewDesc("shiplog_info", "Identity of the node.", []string{"version", "node_id", "name", "role", "database_id", "epoch", "commit_rule"}, nil),
		up:     prometheus.NewDesc("shiplog_upstream_connected", "Whether the follower is connected to its upstream.", nil, nil),
		lag:    prometheus.NewDesc("shiplog_upstream_lag_bytes", "Committed bytes that this follower's readers do not see yet; absent: not connected, and so not known.", nil, nil),
		fresh:  prometheus.NewDesc("shiplog_upstream_fresh_seconds", "Age, by the leader's clock, of what this follower's readers see; absent: never known.", nil, nil),
	}
	add := func(name, help string, kind prometheus.ValueType, value func(s *Status) float64) {
		c.node = append(c.node, gauge{prometheus.NewDesc("shiplog_"+name, help, nil, nil), kind, value})
	}
	const level, count = prometheus.GaugeValue, prometheus.CounterValue
	add("leader", "1 on a leader, 0 on a follower.", level, func(s *Status) float64 { return truth(s.Role == "leader") })
	add("loading", "1 while reads are refused until the commit rule holds.", level, func(s *Status) float64 { return truth(s.Loading) })
	add("log_only", "1 on a follower that keeps the log without an index.", level, func(s *Status) float64 { return truth(s.LogOnly) })
	add("apply_delay_seconds", "By how much this node applies later on purpose, as a follower.", level, func(s *Status) float64 { return float64(s.ApplyDelayMs) / 1e3 })
	add("failed", "1 when the log takes no more writes.", level, func(s *Status) float64 { return truth(s.Failed != "") })
	add("degraded", "1 while the commit rule is degraded.", level, func(s *Status) float64 { return truth(s.DegradedFrom != 0) })
	add("degraded_spans", "Spans in which the commit rule was degraded, of those that are remembered.", level, func(s *Status) float64 { return float64(len(s.DegradedSpans)) })
	add("format_level", "Format level of the database.", level, func(s *Status) float64 { return float64(s.FormatLevel) })
	add("tail_lsn", "Oldest LSN kept.", level, func(s *Status) float64 { return float64(s.Tail) })
	add("head_lsn", "Next LSN to write.", level, func(s *Status) float64 { return float64(s.Head) })
	add("durable_lsn", "End of what is on this node's disk.", level, func(s *Status) float64 { return float64(s.Durable) })
	add("committed_lsn", "End of what is committed.", level, func(s *Status) float64 { return float64(s.Committed) })
	add("applied_lsn", "End of what is indexed.", level, func(s *Status) float64 { return float64(s.Applied) })
	add("visible_lsn", "End of what readers see.", level, func(s *Status) float64 { return float64(s.Visible) })
	add("keys", "Keys in the index, about.", level, func(s *Status) float64 { return float64(s.Keys) })
	add("index_bytes", "Memory of the index.", level, func(s *Status) float64 { return float64(s.IndexBytes) })
	add("index_runs", "Sorted runs of the index on disk.", level, func(s *Status) float64 { return float64(s.IndexRuns) })
	add("index_run_bytes", "Bytes of the index's runs on disk.", level, func(s *Status) float64 { return float64(s.IndexRunBytes) })
	add("lease_seconds", "How long this node may act as the leader before it must have renewed its lease; 0: it is none, or needs no lease.", level, func(s *Status) float64 {
		if s.Lease == nil {
			return 0
		}
		return float64(s.Lease.LeftMs) / 1e3
	})
	add("followers", "Connected followers.", level, func(s *Status) float64 { return float64(len(s.Followers)) })
	add("clients", "Connected Redis clients.", level, func(s *Status) float64 { return float64(s.Clients.Connected) })
	add("client_buffer_bytes", "Bytes buffered for Redis clients.", level, func(s *Status) float64 { return float64(s.Clients.BufferBytes) })
	add("commands_total", "Commands of Redis clients.", count, func(s *Status) float64 { return float64(s.Clients.Commands) })
	add("connections_total", "Connections of Redis clients.", count, func(s *Status) float64 { return float64(s.Clients.Connections) })
	add("connections_rejected_total", "Connections refused because there were too many.", count, func(s *Status) float64 { return float64(s.Clients.Rejected) })
	add("client_in_bytes_total", "Bytes from Redis clients.", count, func(s *Status) float64 { return float64(s.Clients.InBytes) })
	add("client_out_bytes_total", "Bytes to Redis clients.", count, func(s *Status) float64 { return float64(s.Clients.OutBytes) })
	add("keyspace_hits_total", "Keys that were looked up and found.", count, func(s *Status) float64 { return float64(s.Clients.KeyspaceHits) })
	add("keyspace_misses_total", "Keys that were looked up and not found.", count, func(s *Status) float64 { return float64(s.Clients.KeyspaceMisses) })
	add("client_commits_total", "Commits of Redis clients' writes.", count, func(s *Status) float64 { return float64(s.Clients.Commits) })
	add("client_protocol_errors_total", "Redis clients that broke the protocol.", count, func(s *Status) float64 { return float64(s.Clients.ProtocolErrors) })
	add("client_timeouts_total", "Redis clients that were too slow.", count, func(s *Status) float64 { return float64(s.Clients.Timeouts) })
	add("scrubs_total", "Times that the whole log was verified in the background.", count, func(s *Status) float64 { return float64(s.Repairs.Scrubs) })
	add("damaged_segments_total", "Segments of the log that were found damaged.", count, func(s *Status) float64 { return float64(s.Repairs.Damaged) })
	add("repaired_segments_total", "Segments that were mended from a peer.", count, func(s *Status) float64 { return float64(s.Repairs.Repaired) })
	add("repaired_bytes_total", "Bytes of the log that were mended from peers.", count, func(s *Status) float64 { return float64(s.Repairs.Bytes) })
	add("failed_repairs_total", "Segments that could not be mended when it was tried.", count, func(s *Status) float64 { return float64(s.Repairs.Failed) })
	peer := func(name, help string, value func(f *Follower) float64) {
		c.peer = append(c.peer, peerGauge{prometheus.NewDesc("shiplog_follower_"+name, help, []string{"node_id", "name"}, nil), value})
	}
	peer("voter", "1 if the follower counts for the commit rule.", func(f *Follower) float64 { return truth(f.Voter) })
	peer("log_only", "1 if the follower keeps the log without an index.", func(f *Follower) float64 { return truth(f.LogOnly) })
	peer("delayed", "1 if the follower applies later on purpose.", func(f *Follower) float64 { return truth(f.Delayed) })
	peer("sent_lsn", "End of what was sent to the follower.", func(f *Follower) float64 { return float64(f.Sent) })
	peer("received_lsn", "End of what the follower has received.", func(f *Follower) float64 { return float64(f.Received) })
	peer("durable_lsn", "End of what is on the follower's disk.", func(f *Follower) float64 { return float64(f.Durable) })
	peer("applied_lsn", "End of what the follower has indexed.", func(f *Follower) float64 { return float64(f.Applied) })
	peer("lag_bytes", "Committed bytes that the follower's readers do not see yet, or that its disk lacks where it keeps the log only.", func(f *Follower) float64 { return float64(f.LagBytes) })
	peer("last_ack_seconds", "Time since the follower's last acknowledgement.", func(f *Follower) float64 { return float64(f.LastAckMs) / 1e3 })
	peer("rtt_seconds", "Round trip of a mark and its acknowledgement.", func(f *Follower) float64 { return float64(f.RTTMicros) / 1e6 })
	slot := func(name, help string, value func(o *Slot) float64) {
		c.slot = append(c.slot, slotGauge{prometheus.NewDesc("shiplog_slot_"+name, help, []string{"node_id", "name"}, nil), value})
	}
	slot("connected", "1 if the slot's follower is connected.", func(o *Slot) float64 { return truth(o.Connected) })
	slot("lag_bytes", "Bytes of log that are not on the follower's disk.", func(o *Slot) float64 { return float64(o.LagBytes) })
	slot("lag_seconds", "Since when more is committed than the follower has on its disk.", func(o *Slot) float64 { return float64(o.LagMs) / 1e3 })
	slot("pinned_bytes", "Bytes of log that are kept for slots alone.", func(o *Slot) float64 { return float64(o.PinnedBytes) })
	slot("gone_seconds", "Since when the follower is not connected.", func(o *Slot) float64 { return float64(o.GoneMs) / 1e3 })
	slot("left_seconds", "How long the slot lasts at the present rate; 0: not foreseen.", func(o *Slot) float64 { return float64(o.LeftMs) / 1e3 })
	slot("given_up", "1 if nothing is kept for the follower any more: it will start over.", func(o *Slot) float64 { return truth(o.GivenUp != "") })
	return c
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range c.node {
		ch <- g.desc
	}
	for _, g := range c.peer {
		ch <- g.desc
	}
	for _, g := range c.slot {
		ch <- g.desc
	}
	for _, d := range []*prometheus.Desc{c.info, c.up, c.lag, c.fresh} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	s := c.source.Status()
	for _, g := range c.node {
		ch <- prometheus.MustNewConstMetric(g.desc, g.kind, g.value(&s))
	}
	seen := map[string]bool{} // a node that reconnects may be there twice for a moment
	for i := range s.Followers {
		f := &s.Followers[i]
		if seen[f.NodeID] {
			continue
		}
		seen[f.NodeID] = true
		for _, g := range c.peer {
			ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(f), f.NodeID, f.Name)
		}
	}
	for i := range s.Slots {
		o := &s.Slots[i]
		for _, g := range c.slot {
			ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(o), o.NodeID, o.Name)
		}
	}
	ch <- prometheus.MustNewConstMetric(c.info, prometheus.GaugeValue, 1, s.Version, s.NodeID, s.Name, s.Role, s.DatabaseID, s.Epoch, s.Rule)
	if up := s.Upstream; up != nil {
		ch <- prometheus.MustNewConstMetric(c.up, prometheus.GaugeValue, truth(up.Connected))
		if up.LagBytes >= 0 {
			ch <- prometheus.MustNewConstMetric(c.lag, prometheus.GaugeValue, float64(up.LagBytes))
		}
		if up.FreshMs >= 0 {
			ch <- prometheus.MustNewConstMetric(c.fresh, prometheus.GaugeValue, float64(up.FreshMs)/1e3)
		}
	}
}
