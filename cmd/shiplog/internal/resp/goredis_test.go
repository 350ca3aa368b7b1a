package resp_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"shiplog/cmd/shiplog/internal/resp"
)

// TestGoRedis uses the commands as a client library does, over both protocols.
func TestGoRedis(t *testing.T) {
	for _, protocol := range []int{2, 3} {
		t.Run(fmt.Sprintf("RESP%d", protocol), func(t *testing.T) {
			s := start(t, func(o *resp.Options) { o.Password = "secret" })
			ctx := t.Context()
			r := redis.NewClient(&redis.Options{
				Addr: s.addr, Password: "secret", Protocol: protocol, ClientName: "test",
				MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
			})
			defer r.Close()
			check := func(what string, got any, err error, want any) {
				t.Helper()
				if err != nil && err != redis.Nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s: got %v, %v, want %v", what, got, err, want)
				}
			}
			got, err := r.Set(ctx, "a", "1", 0).Result()
			check("SET", got, err, "OK")
			got, err = r.Get(ctx, "a").Result()
			check("GET", got, err, "1")
			_, err = r.Get(ctx, "none").Result()
			check("GET of nothing", err, nil, redis.Nil)
			old, err := r.SetArgs(ctx, "a", "2", redis.SetArgs{Get: true, TTL: time.Minute}).Result()
			check("SET GET EX", old, err, "1")
			n, err := r.IncrBy(ctx, "a", 40).Result()
			check("INCRBY", n, err, 42)
			all, err := r.MGet(ctx, "a", "none").Result()
			check("MGET", all, err, "[42 <nil>]")
			names, err := r.Keys(ctx, "*").Result()
			check("KEYS", names, err, "[a]")
			config, err := r.ConfigGet(ctx, "appendonly").Result()
			check("CONFIG GET", config, err, "map[appendonly:yes]")
			name, err := r.ClientGetName(ctx).Result()
			check("CLIENT GETNAME", name, err, "test")
			id, err := r.ClientID(ctx).Result()
			check("CLIENT ID", id > 0, err, true)
			list, err := r.ClientList(ctx).Result()
			check("CLIENT LIST", len(list) > 20, err, true)
			info, err := r.InfoMap(ctx, "replication").Result()
			check("INFO", info["Replication"]["role"], err, "master")
			waited, err := r.Wait(ctx, 0, time.Second).Result()
			check("WAIT", waited, err, 0)
			commands, err := r.Command(ctx).Result()
			check("COMMAND", commands["get"].ReadOnly, err, true)
			now, err := r.Time(ctx).Result()
			check("TIME", time.Since(now) < time.Minute, err, true)
			size, err := r.DBSize(ctx).Result()
			check("DBSIZE", size, err, 1)
			flushed, err := r.FlushAll(ctx).Result()
			check("FLUSHALL", flushed, err, "OK")
			scanAll(t, r)
			counters(t, r)
		})
	}
}

func scanAll(t *testing.T, r *redis.Client) {
	var want []string
	p := r.Pipeline()
	for i := range 500 {
		want = append(want, fmt.Sprintf("key:%04d", i))
		p.Set(t.Context(), want[i], i, 0)
	}
	if _, err := p.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	it := r.Scan(t.Context(), 0, "key:*", 7).Iterator()
	for it.Next(t.Context()) {
		got = append(got, it.Val())
	}
	slices.Sort(got)
	if got = slices.Compact(got); it.Err() != nil || !slices.Equal(got, want) {
		t.Errorf("SCAN returned %d of %d keys, %v", len(got), len(want), it.Err())
	}
}

// counters: increments of many clients are all counted, and exactly one of those that race sets or deletes a key.
func counters(t *testing.T, r *redis.Client) {
	const clients, rounds = 8, 50
	var wg sync.WaitGroup
	var mu sync.Mutex
	set, deleted := 0, 0
	for range clients {
		wg.Go(func() {
			for i := range rounds {
				ctx := context.Background()
				key := fmt.Sprintf("once:%d", i)
				r.Incr(ctx, "counter")
				first, err := r.SetNX(ctx, key, 1, 0).Result()
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				if first {
					set++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for i := range rounds {
		for range clients {
			wg.Go(func() {
				n, err := r.Del(context.Background(), fmt.Sprintf("once:%d", i)).Result()
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				deleted += int(n)
				mu.Unlock()
			})
		}
		wg.Wait()
	}
	n, err := r.Get(t.Context(), "counter").Int()
	if err != nil || n != clients*rounds || set != rounds || deleted != rounds {
		t.Errorf("counter %d (want %d), %d set and %d deleted (want %d), %v", n, clients*rounds, set, deleted, rounds, err)
	}
}
