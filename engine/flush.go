package engine

import "time"

// flusher syncs what commits under Buffered and Written left unsynced, at most FlushInterval after
// the first of it, and now and then raises the index's floor, removes what nobody needs and keeps the slots' file. One goroutine; stop ends it.
type flusher struct {
	kicks chan struct{}
	quit  chan struct{}
	done  chan struct{}
}

func startFlusher(db *DB) *flusher {
	f := &flusher{kicks: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go func() { // ended by stop
		defer close(f.done)
		f.run(db)
	}()
	return f
}

// kick says that something unsynced is in the log. It never blocks.
func (f *flusher) kick() {
	if len(f.kicks) > 0 {
		return
	}
	select {
	case f.kicks <- struct{}{}:
	default:
	}
}

func (f *flusher) run(db *DB) {
	floor := time.NewTicker(floorInterval)
	defer floor.Stop()
	delay := time.NewTimer(0)
	<-delay.C
	defer delay.Stop()
	for {
		select {
		case <-f.quit:
			return
		case <-floor.C:
			db.raiseFloor()
			db.trim()
			db.slots.rise(db.Committed(), db.clock.now)
			db.slots.keep(db)
			db.saveClock(false)
			continue
		case <-f.kicks:
		}
		delay.Reset(db.opts.FlushInterval)
		select {
		case <-f.quit:
			return
		case <-delay.C:
		}
		if _, err := db.log.Sync(); err != nil {
			db.poisoned(err)
			return
		}
		db.marks.synced(db.log.Durable())
		db.raiseFloor()
	}
}

// floorInterval bounds how long the index keeps versions that nobody can ask for any more.
const floorInterval = 20 * time.Millisecond

func (f *flusher) stop() {
	close(f.quit)
	<-f.done
}
