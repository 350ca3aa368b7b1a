package engine

import (
	"testing"
	"testing/synctest"
	"time"

	"shiplog/wal/waltest"
)

// TestAwaitVoters: a group that is about to be taken waits for the followers' confirmation of the one before, if as many
// writers come again with it as are queued; no longer than the last sync took, and not at all for some groups after it
// has waited in vain.
func TestAwaitVoters(t *testing.T) {
	ForgetCommits()
	defer ForgetCommits()
	synctest.Test(t, func(t *testing.T) {
		db, err := Open("db", &Options{FS: waltest.NewDisk(), Commit: Replicated(1), CommitTimeout: -1})
		if err != nil {
			t.Fatal(err)
		}
		f := id(1)
		if _, err := db.AdmitPeer(f, "f", ""); err != nil {
			t.Fatal(err)
		}
		confirm := func() {
			end := db.log.Head()
			db.PeerAck(f, end, end, end, end)
		}
		confirm()
		put := func(key string) {
			go func() {
				if err := db.Put([]byte(key), nil); err != nil {
					t.Error(err)
				}
			}()
			synctest.Wait()
		}
		lastSync := func(took time.Duration) {
			db.pipe.syncing.Lock()
			db.pipe.pause.took = took
			db.pipe.syncing.Unlock()
		}

		put("a")
		lastSync(time.Hour)
		at := db.log.Head()
		put("b")
		if db.log.Head() != at {
			t.Fatal("the group was taken before the followers had confirmed the one before")
		}
		confirm()
		synctest.Wait()
		if db.log.Head() == at {
			t.Fatal("the group waits although the followers have confirmed")
		}

		lastSync(time.Hour)
		at = db.log.Head()
		put("c")
		if db.log.Head() != at {
			t.Fatal("the group was taken at once")
		}
		time.Sleep(time.Hour - time.Second)
		synctest.Wait()
		if db.log.Head() != at {
			t.Fatal("the group was taken before its time")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if db.log.Head() == at {
			t.Fatal("the group waits longer than a sync takes")
		}

		lastSync(time.Hour)
		for range farFollowers {
			at = db.log.Head()
			put("d")
			if db.log.Head() == at {
				t.Fatal("a group waits for followers that were too far away")
			}
			lastSync(time.Hour)
		}
		at = db.log.Head()
		put("e")
		if db.log.Head() != at {
			t.Error("no group waits any more")
		}
		confirm()
		synctest.Wait()
		confirm()
		synctest.Wait()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}
