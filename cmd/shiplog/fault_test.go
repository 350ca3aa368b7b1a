package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestFailedSyncOfANode has the system answer EIO to one fdatasync of a running node, or to all from then on: that write
// and later ones are not acknowledged, and are told so; the node says what has happened, reads go on; after a kill and a
// restart every acknowledged write is there.
func TestFailedSyncOfANode(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed")
	}
	if out, err := exec.Command(strace, "-qq", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		t.Skipf("strace cannot trace here: %v %s", err, out)
	}
	ctx := context.Background()
	for _, when := range []string{"12", "12+"} {
		t.Run("when="+when, func(t *testing.T) {
			dir, err := filepath.EvalSymlinks(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			n := newNode(t, filepath.Join(dir, "db"))
			n.under = []string{
				strace, "-f", "-qq", "-o", os.DevNull, "-P", filepath.Join(dir, "db", "log", "0000000000000000.seg"),
				"-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=" + when,
			}
			n.start()
			client := n.client()
			acked := 0
			for ; err == nil; acked++ {
				if acked > 1000 {
					t.Fatal("no sync has failed")
				}
				err = client.Set(ctx, fmt.Sprint("k", acked), "v", 0).Err()
			}
			acked-- // the last one was not
			if acked == 0 || !strings.HasPrefix(err.Error(), "UNKNOWNOUTCOME") {
				t.Fatalf("after %d writes: %v", acked, err)
			}
			for range 3 {
				if err := client.Set(ctx, "late", "v", 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "MISCONF") {
					t.Fatalf("a write after the failed sync: %v", err)
				}
			}
			if v, err := client.Get(ctx, fmt.Sprint("k", acked-1)).Result(); err != nil || v != "v" {
				t.Errorf("GET of an acknowledged write: %q, %v", v, err)
			}
			if v, err := client.Get(ctx, fmt.Sprint("k", acked)).Result(); err == nil {
				t.Errorf("the unacknowledged write shows %q", v)
			}
			if s := n.status(); !strings.Contains(s.Failed, "poisoned") {
				t.Errorf("the status says %q", s.Failed)
			}
			res, err := n.web.Get(n.scheme + "://" + n.http + "/healthz")
			if err != nil || res.StatusCode == http.StatusOK {
				t.Errorf("healthz: %v, %v", res, err)
			} else {
				res.Body.Close()
			}
			n.kill()
			n.under = nil
			n.start()
			for i := range acked {
				if v, err := client.Get(ctx, fmt.Sprint("k", i)).Result(); err != nil || v != "v" {
					t.Fatalf("write %d of %d is lost: %q, %v", i, acked, v, err)
				}
			}
			if size, err := client.DBSize(ctx).Result(); err != nil || size > int64(acked)+1 {
				t.Errorf("%d keys after %d acknowledged writes, %v", size, acked, err)
			}
			if err := client.Set(ctx, "late", "v", 0).Err(); err != nil {
				t.Errorf("a write after the restart: %v", err)
			}
			n.stop()
		})
	}
}
