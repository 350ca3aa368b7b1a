package main

import (
	"errors"

	"github.com/tidwall/wal"
)

type tidwallLog struct {
	log   *wal.Log
	index uint64
}

// openTidwallWAL takes the defaults; entries are read without a copy.
func openTidwallWAL(c *Config) (LogStore, error) {
	o := *wal.DefaultOptions
	o.NoSync = !c.Durable
	o.NoCopy = true
	l, err := wal.Open(c.Dir, &o)
	if err != nil {
		return nil, err
	}
	return &tidwallLog{log: l}, nil
}

func (s *tidwallLog) Append(entry []byte) error {
	s.index++
	return s.log.Write(s.index, entry)
}

func (s *tidwallLog) Close() error { return s.log.Close() }

func replayTidwallWAL(dir string, fn func(entry []byte) bool) error {
	s, err := openTidwallWAL(&Config{Dir: dir})
	if err != nil {
		return err
	}
	l := s.(*tidwallLog).log
	first, err := l.FirstIndex()
	last, err2 := l.LastIndex()
	if err := errors.Join(err, err2); err != nil {
		return err
	}
	for i := first; i <= last; i++ {
		entry, err := l.Read(i)
		if err != nil {
			return err
		}
		if !fn(entry) {
			break
		}
	}
	return l.Close()
}
