package main

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/cmd/shiplog/internal/resp"
	"shiplog/engine"
)

// TestExpiryCountsFromLogTime opens a database whose last writer's clock was an hour ahead. Log time does not fall, so a
// minute to live is a minute behind that, not an hour ago.
func TestExpiryCountsFromLogTime(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	ahead := engine.Options{Now: func() time.Time { return time.Now().Add(time.Hour) }}
	db, err := engine.Open(dir, &ahead)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Put([]byte("a"), []byte("b")); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = engine.Open(dir, nil); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := resp.New(resp.Options{Store: store{db: db}, Node: &node{cfg: new(config.Node), db: db}})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }() // ends by Shutdown
	c := redis.NewClient(&redis.Options{
		Addr:                     ln.Addr().String(),
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	for key, option := range map[string]string{"seconds": "EX", "milliseconds": "PX"} {
		if err := c.Do(ctx, "SET", key, "v", option, "60000").Err(); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Get(ctx, key).Result(); got != "v" || err != nil {
			t.Errorf("SET %s 60000, then GET: %q, %v", option, got, err)
		}
		want := time.UnixMilli(db.LogTime()).Add(time.Minute)
		if option == "EX" {
			want = want.Add(60000*time.Second - time.Minute)
		}
		var expiry time.Time
		_, err := db.Update(ctx, engine.Default, func(tx *engine.Tx) (err error) {
			_, expiry, err = tx.GetEntry([]byte(key))
			return err
		})
		if err != nil || expiry.After(want) || expiry.Before(want.Add(-30*time.Second)) {
			t.Errorf("SET %s 60000 expires at %v, want %v, %v", option, expiry, want, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := srv.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != resp.ErrServerClosed {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}
