package main

import (
	"errors"
	"fmt"

	"shiplog/cmd/shiplog/internal/httpd"
	"shiplog/wal"
)

// boundaryBelow returns the last end of a frame or segment header that is not above lsn. At most one segment is read.
func boundaryBelow(log *wal.Log, lsn wal.LSN) (wal.LSN, error) {
	if log.Empty() {
		return 0, wal.ErrNoDatabase
	}
	if lsn < log.Tail() {
		return 0, fmt.Errorf("%w: %v is below the tail %v", httpd.ErrOutOfRange, lsn, log.Tail())
	}
	if head := log.Head(); lsn >= head {
		return head, nil
	}
	base := lsn &^ wal.LSN(log.SegmentSize()-1)
	at := base + wal.HeaderSize
	if lsn < at {
		return base, nil
	}
	for {
		var end wal.LSN
		err := log.ViewFrame(at, func(f wal.Frame, _ []byte) error {
			end = f.End()
			return nil
		})
		switch {
		case errors.Is(err, wal.ErrNotBoundary): // a seal: it ends with the segment
			return at, nil
		case err != nil:
			return 0, err
		case end > lsn:
			return at, nil
		}
		at = end
	}
}

func digestBelow(log *wal.Log, lsn wal.LSN) (httpd.Digest, error) {
	at, err := boundaryBelow(log, lsn)
	if err != nil {
		return httpd.Digest{}, err
	}
	d, err := log.DigestAt(at)
	if err != nil {
		return httpd.Digest{}, err
	}
	return httpd.Digest{DatabaseID: log.DatabaseID().String(), LSN: uint64(at), Digest: digestString(d)}, nil
}
