package httpd_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"shiplog/cmd/shiplog/internal/httpd"
)

type source struct{ sick error }

func (s source) Status() httpd.Status {
	return httpd.Status{
		Name: "n<1>", Role: "follower", Head: 42,
		// The same follower twice: it has reconnected, and its old connection is still there.
		Followers: []httpd.Follower{{NodeID: "aa", Name: "x", LagBytes: 7}, {NodeID: "aa", Name: "x"}},
		Upstream:  &httpd.Upstream{Addr: "h:1", Connected: true, FreshMs: 1500},
	}
}

func (s source) DigestAt(lsn uint64) (httpd.Digest, error) {
	if lsn > 42 {
		return httpd.Digest{}, httpd.ErrOutOfRange
	}
	return httpd.Digest{LSN: lsn &^ 7, Digest: "aa"}, nil
}

func (s source) Healthy() error { return s.sick }

func TestPages(t *testing.T) {
	tests := []struct {
		name, path, host, auth, password string
		sick                             error
		code                             int
		want                             string
	}{
		{name: "status", path: "/status", code: 200, want: `"head_lsn": 42`},
		{name: "page escapes names", path: "/", code: 200, want: "n&lt;1&gt;"},
		{name: "metrics", path: "/metrics", code: 200, want: "shiplog_head_lsn 42"},
		{name: "metrics of followers", path: "/metrics", code: 200, want: `shiplog_follower_lag_bytes{name="x",node_id="aa"} 7`},
		{name: "metrics of the upstream", path: "/metrics", code: 200, want: "shiplog_upstream_fresh_seconds 1.5"},
		{name: "profiles", path: "/debug/pprof/", code: 200, want: "goroutine"},
		{name: "digest", path: "/digest?lsn=41", code: 200, want: `"lsn": 40`},
		{name: "digest beyond", path: "/digest?lsn=43", code: 404, want: "outside"},
		{name: "digest of nonsense", path: "/digest?lsn=x", code: 400, want: "lsn"},
		{name: "unknown", path: "/nope", code: 404},
		{name: "healthy", path: "/healthz", code: 200, want: "ok"},
		{name: "sick", path: "/healthz", sick: errors.New("secret reason"), code: 503, want: "not healthy"},
		{name: "foreign host name", path: "/status", host: "evil.example", code: 403},
		{name: "no password", path: "/status", password: "p", code: 401},
		{name: "wrong password", path: "/status", password: "p", auth: "Bearer q", code: 401},
		{name: "bearer", path: "/status", password: "p", auth: "Bearer p", code: 200},
		{name: "basic", path: "/status", password: "p", auth: "Basic YW55Ym9keTpw", host: "example.org", code: 200},
		{name: "profiles need the password", path: "/debug/pprof/heap", password: "p", code: 401},
		{name: "health needs none", path: "/healthz", password: "p", host: "example.org", code: 200},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := httpd.New(httpd.Options{Source: source{test.sick}, Password: test.password})
			r := httptest.NewRequest(http.MethodGet, test.path, nil)
			r.Host = "127.0.0.1:8380"
			if test.host != "" {
				r.Host = test.host
			}
			if test.auth != "" {
				r.Header.Set("Authorization", test.auth)
			}
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, r)
			if w.Code != test.code || !strings.Contains(w.Body.String(), test.want) {
				t.Errorf("got %d %.500s, want %d with %q", w.Code, w.Body, test.code, test.want)
			}
		})
	}
}

func TestStatusRoundTrip(t *testing.T) {
	p, err := json.Marshal(source{}.Status())
	if err != nil {
		t.Fatal(err)
	}
	var s httpd.Status
	if err := json.Unmarshal(p, &s); err != nil || s.Head != 42 || len(s.Followers) != 2 {
		t.Errorf("got %+v, %v", s, err)
	}
}
