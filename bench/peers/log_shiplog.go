package main

import (
	"encoding/binary"
	"errors"

	"shiplog/wal"
)

// shiplogLog stores an entry as a record of one tag byte (the log's own bits live there), its length, and its bytes.
type shiplogLog struct {
	log   *wal.Log
	batch wal.Batch
	group []*wal.Batch
	sync  bool
}

func openShiplogLog(c *Config) (LogStore, error) {
	l, err := wal.Open(c.Dir, nil)
	if err != nil {
		return nil, err
	}
	if err := l.Create(wal.Rule{}); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	s := &shiplogLog{log: l, sync: c.Durable}
	s.group = []*wal.Batch{&s.batch}
	return s, nil
}

func (s *shiplogLog) Append(entry []byte) error {
	s.batch.Reset()
	buf := append(s.batch.Buf, 1)
	buf = binary.AppendUvarint(buf, uint64(len(entry)))
	s.batch.Buf = append(buf, entry...)
	s.batch.End()
	_, err := s.log.Append(s.group, s.sync)
	if err == nil && s.sync {
		_, err = s.log.Sync()
	}
	return err
}

func (s *shiplogLog) Close() error { return s.log.Close() }

func replayShiplogLog(dir string, fn func(entry []byte) bool) error {
	l, err := wal.Open(dir, nil)
	if err != nil {
		return err
	}
	r := l.NewReader(l.Tail())
	defer r.Close()
	for more := true; more && r.Next(); {
		if r.Frame().Control() {
			continue
		}
		for raw := r.Raw(); more && len(raw) > 0; {
			n, width := binary.Uvarint(raw[1:])
			end := 1 + width + int(n)
			if width <= 0 || end > len(raw) {
				return errors.New("record runs over its frame")
			}
			more = fn(raw[1+width : end])
			raw = raw[end:]
		}
	}
	return errors.Join(r.Err(), l.Close())
}
