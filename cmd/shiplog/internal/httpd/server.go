// Package httpd serves what operators look at and change: POST /promote, /switchover, /rule, /format, /slot/drop and /repair, /status (JSON), /healthz, /metrics (Prometheus), /digest (for compare),
// /debug/pprof, and a page for people at /.
//
// With a password every path but /healthz asks for it, as Basic authentication (any user) or as a bearer token. Without
// one the port is for loopback, and requests whose Host is not a loopback name are refused, so that a web page
// cannot reach it through a name that it controls.
package httpd

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"shiplog/wal/vfs"
)

// Source is what the pages are made from. Its methods may be called concurrently.
type Source interface {
	Status() Status
	// DigestAt returns the digest at the last end of a frame that is not above lsn.
	DigestAt(lsn uint64) (Digest, error)
	// Healthy returns why the node cannot do its work; nil: it can.
	Healthy() error
}

// Control changes the node's role. Its methods may be called concurrently; their answers are shown as JSON.
type Control interface {
	// Promote makes the node the leader; with force although too few others agree, with dry it says only what would come of it.
	Promote(ctx context.Context, force, dry bool) (any, error)
	// Switchover hands the lead over to the follower of that name.
	Switchover(ctx context.Context, to string) (any, error)
	// SetRule changes the commit rule and its voters; empty and nil leave what is.
	SetRule(ctx context.Context, commit string, voters []string, force bool) (any, error)
	// RaiseFormat raises the format level of the database.
	RaiseFormat(ctx context.Context, level uint32) (any, error)
	// Repair verifies the whole log, and mends it from peers. It may take hours.
	Repair(ctx context.Context) (any, error)
	// DropSlot lets go of what is kept for the follower of that name.
	DropSlot(name string) (any, error)
}

// ErrOutOfRange is returned by a Source's DigestAt for an LSN that its log does not hold.
var ErrOutOfRange = errors.New("httpd: LSN is outside of the log")

// Options configure a Server. Source is required.
type Options struct {
	Source   Source
	Control  Control     // nil: the role cannot be changed here
	Password string      // empty: loopback only
	TLS      *tls.Config // nil: plain
	Logger   *slog.Logger
}

// maxConns bounds the connections served at once; where the process may have few descriptors it is a sixteenth of them.
const maxConns = 128

// Server serves HTTP.
type Server struct {
	opts     Options
	http     http.Server
	passHash [sha256.Size]byte
	digest   sync.Mutex // one at a time: each may read a segment
}

// New returns a server; it starts nothing.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{opts: o, passHash: sha256.Sum256([]byte(o.Password))}
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		newCollector(o.Source),
	)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("GET /digest", s.digestAt)
	if o.Control != nil {
		mux.HandleFunc("POST /promote", s.control(func(r *http.Request) (any, error) {
			q := r.URL.Query()
			return o.Control.Promote(r.Context(), q.Has("force"), q.Has("dry-run"))
		}))
		mux.HandleFunc("POST /switchover", s.control(func(r *http.Request) (any, error) {
			return o.Control.Switchover(r.Context(), r.URL.Query().Get("to"))
		}))
		mux.HandleFunc("POST /rule", s.control(func(r *http.Request) (any, error) {
			q := r.URL.Query()
			return o.Control.SetRule(r.Context(), q.Get("commit"), q["voter"], q.Has("force"))
		}))
		mux.HandleFunc("POST /format", s.control(func(r *http.Request) (any, error) {
			level, err := strconv.ParseUint(r.URL.Query().Get("level"), 10, 32)
			if err != nil {
				return nil, err
			}
			return o.Control.RaiseFormat(r.Context(), uint32(level))
		}))
		repair := s.control(func(r *http.Request) (any, error) { return o.Control.Repair(r.Context()) })
		mux.HandleFunc("POST /repair", func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // else it ends at WriteTimeout
			repair(w, r)
		})
		mux.HandleFunc("POST /slot/drop", s.control(func(r *http.Request) (any, error) {
			return o.Control.DropSlot(r.URL.Query().Get("name"))
		}))
	}
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	root := http.NewServeMux()
	root.HandleFunc("GET /healthz", s.health)
	root.Handle("/", s.authenticated(mux))
	s.http = http.Server{
		Handler: root, TLSConfig: o.TLS, MaxHeaderBytes: 16 << 10,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		WriteTimeout: 3 * time.Minute, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	return s
}

// Serve serves until Shutdown, then returns http.ErrServerClosed. It closes ln.
func (s *Server) Serve(ln net.Listener) error {
	ln = &limited{Listener: ln, slots: make(chan struct{}, min(maxConns, max(vfs.Descriptors()/16, 4)))}
	if s.opts.TLS != nil {
		return s.http.ServeTLS(ln, "", "")
	}
	return s.http.Serve(ln)
}

// Shutdown stops serving; requests that are being answered may finish until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.http.Shutdown(ctx); err != nil {
		return errors.Join(err, s.http.Close())
	}
	return nil
}

// Handler returns what is served.
func (s *Server) Handler() http.Handler { return s.http.Handler }

func (s *Server) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.opts.Password == "" {
			if !loopbackHost(r.Host) {
				http.Error(w, "without a password this port answers to loopback names only", http.StatusForbidden)
				return
			}
			next.ServeHTTP(w, r)
			return
		}
		_, password, ok := r.BasicAuth()
		if token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); bearer {
			password, ok = token, true
		}
		sum := sha256.Sum256([]byte(password))
		if !ok || subtle.ConstantTimeCompare(sum[:], s.passHash[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="shiplog"`)
			http.Error(w, "authentication required", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func loopbackHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	if err := s.opts.Source.Healthy(); err != nil {
		http.Error(w, "not healthy", http.StatusServiceUnavailable) // the reason is in /status, behind the password
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n")) // fails only when the client has gone
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.opts.Source.Status()) }

// control answers a request that changes something. A page of another site cannot make one: browsers ask before they send JSON there.
func (s *Server) control(do func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Content-Type") != "application/json" {
			http.Error(w, "Content-Type: want application/json", http.StatusUnsupportedMediaType)
			return
		}
		v, err := do(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		writeJSON(w, v)
	}
}

func (s *Server) digestAt(w http.ResponseWriter, r *http.Request) {
	lsn, err := strconv.ParseUint(r.URL.Query().Get("lsn"), 10, 64)
	if err != nil {
		http.Error(w, "lsn: want a decimal number", http.StatusBadRequest)
		return
	}
	s.digest.Lock()
	defer s.digest.Unlock()
	d, err := s.opts.Source.DigestAt(lsn)
	switch {
	case errors.Is(err, ErrOutOfRange):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		writeJSON(w, d)
	}
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // fails only when the client has gone
}

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5"><title>shiplog {{.Name}}</title>
<style>body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.25em .6em;text-align:left}td.n{text-align:right;font-variant-numeric:tabular-nums}.bad{color:#b00}</style></head><body>
<h1>{{.Name}}: {{.Role}}{{if .Loading}} <span class="bad">loading</span>{{end}}</h1>
{{if .Failed}}<p class="bad">The log takes no writes: {{.Failed}}</p>{{end}}
{{if .FencedBy}}<p class="bad">Fenced by epoch {{.FencedBy}}</p>{{end}}
{{if .DegradedFrom}}<p class="bad">The commit rule is degraded since LSN {{.DegradedFrom}}</p>{{end}}
<table>
<tr><th>database</th><td>{{.DatabaseID}}</td></tr><tr><th>node</th><td>{{.NodeID}}</td></tr>
<tr><th>epoch</th><td>{{.Epoch}} (history {{.HistoryID}})</td></tr><tr><th>commit rule</th><td>{{.Rule}}</td></tr>
<tr><th>tail</th><td class="n">{{.Tail}}</td></tr><tr><th>head</th><td class="n">{{.Head}}</td></tr>
<tr><th>durable</th><td class="n">{{.Durable}}</td></tr><tr><th>committed</th><td class="n">{{.Committed}}</td></tr>
<tr><th>applied</th><td class="n">{{.Applied}}</td></tr><tr><th>visible</th><td class="n">{{.Visible}}</td></tr>
<tr><th>digest</th><td>{{.Digest}} at {{.DigestLSN}}</td></tr><tr><th>keys</th><td class="n">{{.Keys}}</td></tr>
</table>
{{with .Upstream}}<h2>Upstream</h2><table><tr><th>address</th><td>{{.Addr}}</td></tr><tr><th>name</th><td>{{.Name}}</td></tr>
<tr><th>connected</th><td>{{.Connected}}</td></tr><tr><th>lag, bytes</th><td class="n">{{if ge .LagBytes 0}}{{.LagBytes}}{{else}}not known{{end}}</td></tr>
{{if .Error}}<tr><th>error</th><td class="bad">{{.Error}}</td></tr>{{end}}</table>{{end}}
{{if .Followers}}<h2>Followers</h2><table><tr><th>name</th><th>address</th><th>voter</th><th>sent</th><th>received</th><th>durable</th><th>applied</th><th>lag, bytes</th></tr>
{{range .Followers}}<tr><td>{{.Name}}</td><td>{{.Addr}}</td><td>{{.Voter}}</td><td class="n">{{.Sent}}</td><td class="n">{{.Received}}</td><td class="n">{{.Durable}}</td><td class="n">{{.Applied}}</td><td class="n">{{.LagBytes}}</td></tr>{{end}}</table>{{end}}
<p><a href="/status">status</a> <a href="/metrics">metrics</a> <a href="/debug/pprof/">profiles</a></p>
</body></html>
`))

func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	_ = pageTemplate.Execute(w, s.opts.Source.Status()) // fails only when the client has gone
}

// limited is a listener that lets a number of connections in at once; further ones wait in the kernel.
type limited struct {
	net.Listener
	slots chan struct{}
}

// Accept waits for a slot first.
func (l *limited) Accept() (net.Conn, error) {
	l.slots <- struct{}{}
	nc, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: nc, release: func() { <-l.slots }}, nil
}

type limitedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

// Close gives the slot back.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.release)
	return err
}
