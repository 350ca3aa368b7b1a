package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestUnanswered gives verbs addresses where no node speaks HTTP, or does not answer as it should: each error says what to look at.
func TestUnanswered(t *testing.T) {
	alien, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer alien.Close()
	go func() { // ends with the listener
		for {
			c, err := alien.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("-ERR unknown command\r\n"))
			c.Close()
		}
	}()
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(20 * time.Second): // whoever is this patient has not heard --timeout
			io.WriteString(w, "{}")
		}
	}))
	defer slow.Close()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/status":
			http.Error(w, "authentication required", http.StatusUnauthorized)
		case "/digest":
			http.Error(w, "no", http.StatusNotFound)
		default:
			http.Error(w, "this node does not lead: to="+r.URL.Query().Get("to"), http.StatusConflict)
		}
	}))
	defer refusing.Close()
	addr := func(s *httptest.Server) string { return strings.TrimPrefix(s.URL, "http://") }
	tests := []struct {
		args string
		want string
	}{
		{"status --http " + alien.Addr().String(), "no answer from " + alien.Addr().String() + ", is that what its node has as --http?"},
		{"promote --timeout 50ms --http " + addr(slow), "gives no answer within --timeout"},
		{"rule --commit durable --timeout 50ms --http " + addr(slow), "gives no answer within --timeout"},
		{"repair --timeout 50ms --http " + addr(slow), "gives no answer within --timeout"},
		{"status --http " + addr(refusing), "give --requirepass-file"},
		{"switchover --to a&b+c#d --http " + addr(refusing), "shiplog: " + addr(refusing) + ": this node does not lead: to=a&b+c#d\n"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			code, out, errs := command(strings.Fields(test.args)...)
			if code != exitFailure || out != "" || !strings.Contains(errs, test.want) || strings.Count(errs, "\n") != 1 {
				t.Errorf("code %d, stdout %q, stderr %q, want %q in one line", code, out, errs, test.want)
			}
		})
	}
}
