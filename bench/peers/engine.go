package main

import (
	"fmt"
	"slices"
	"strings"
)

// Config is how a workload wants a store opened.
type Config struct {
	Dir       string
	Durable   bool  // each write waits for the disk; otherwise it need not survive a loss of power, but a kill where the store can
	ValueSize int   // bytes of the values to come
	Writers   int   // goroutines that will write at once
	Cache     int64 // bytes that the store may use to cache blocks, where it has such a cache
}

// Pair is one operation of a batch.
type Pair struct{ Key, Value []byte }

// Store is an open store.
type Store interface {
	// Session returns what one goroutine works with.
	Session() (Session, error)
	// Close leaves the store so that it can be opened again. Sessions are closed before.
	Close() error
}

// Session is a goroutine's access to a store. What it is given stays the caller's; what callbacks get is valid during
// the call only.
type Session interface {
	// Put sets a key at the store's durability.
	Put(key, value []byte) error
	// PutBatch sets all of them or none, at the store's durability.
	PutBatch(pairs []Pair) error
	// Get calls fn with the newest value of key, if it has one.
	Get(key []byte, fn func(value []byte)) (found bool, err error)
	// Scan calls fn with up to limit pairs in key order, from the first key that is not below start.
	Scan(start []byte, limit int, fn func(key, value []byte)) error
	Close() error
}

// LogStore is an open log.
type LogStore interface {
	// Append adds an entry, durable on return if the log was opened so.
	Append(entry []byte) error
	Close() error
}

// peer is a competitor: a store, a log, or both.
type peer struct {
	name  string
	rows  []string // the only workloads that it takes part in; empty: all
	store func(c *Config) (Store, error)
	log   func(c *Config) (LogStore, error)
	// replay opens the log in a directory, calls fn with each entry in order until it returns false, and closes.
	replay func(dir string, fn func(entry []byte) bool) error
}

// us is the name of the store that the others are compared with. Names that begin with it are the same one with other
// options, not competitors.
const us = "shiplog"

// peers are all competitors; optional ones add themselves.
var peers = []peer{
	{name: us, store: openShiplog, log: openShiplogLog, replay: replayShiplogLog},
	{name: "shiplog-sorted", store: openShiplogSorted, rows: []string{"read1", "scan", "seek50", "ycsbe", "overwrite", "reopen"}},
	{name: "pebble", store: openPebble},
	{name: "badger", store: openBadger},
	{name: "bbolt", store: openBbolt},
	{name: "goleveldb", store: openLevelDB},
	{name: "raft-wal", log: openRaftWAL, replay: replayRaftWAL},
	{name: "etcd-wal", log: openEtcdWAL, replay: replayEtcdWAL},
	{name: "tidwall-wal", log: openTidwallWAL, replay: replayTidwallWAL},
}

func findPeer(name string) (peer, error) {
	i := slices.IndexFunc(peers, func(p peer) bool { return p.name == name })
	if i < 0 {
		return peer{}, fmt.Errorf("no engine %q; there are %s", name, strings.Join(peerNames(), ", "))
	}
	return peers[i], nil
}

func peerNames() []string {
	var names []string
	for _, p := range peers {
		names = append(names, p.name)
	}
	return names
}
