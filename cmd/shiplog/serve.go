package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/spf13/cobra"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/cmd/shiplog/internal/httpd"
	"shiplog/cmd/shiplog/internal/resp"
	"shiplog/engine"
	"shiplog/ship"
)

func newServe() *cobra.Command {
	var flags config.Serve
	cmd := &cobra.Command{
		Use:   "serve --dir DIR",
		Short: "Run a node",
		Long: "Run a node: a leader, or with --follow a follower. Redis clients connect to --listen.\n\n" +
			"Without credentials every port must be on loopback. SIGTERM finishes the commands in flight, closes the database and exits with 0.\n\n" +
			"Exit codes: 0 stopped by a signal, 1 the node could not start or has failed, 2 bad usage.",
		Example: "  shiplog serve --dir data\n" +
			"  shiplog serve --dir copy --follow 127.0.0.1:7380 --listen 127.0.0.1:6381 --ship 127.0.0.1:7381 --http 127.0.0.1:8381",
		Args: arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.Resolve()
			if err != nil {
				return err
			}
			err = serve(cmd.Context(), cfg)
			if errors.Is(err, engine.ErrInvalidOption) {
				return err // what a flag says, found by who opens the database
			}
			return fail(err)
		},
	}
	flags.Register(cmd.Flags())
	return cmd
}

// listeners are the open ports of a node; nil: not served.
type listeners struct{ resp, ship, http net.Listener }

func (l *listeners) close() {
	for _, ln := range []net.Listener{l.resp, l.ship, l.http} {
		if ln != nil {
			_ = ln.Close() // most are closed already, by who served them
		}
	}
}

// listen opens the ports, before the database: a port that is taken is known at once.
func listen(cfg *config.Node) (l listeners, err error) {
	for _, p := range []struct {
		flag, addr string
		ln         *net.Listener
	}{{"--listen", cfg.Listen, &l.resp}, {"--ship", cfg.Ship, &l.ship}, {"--http", cfg.HTTP, &l.http}} {
		if p.addr == "" {
			continue
		}
		if *p.ln, err = net.Listen("tcp", p.addr); err != nil {
			l.close()
			return l, fmt.Errorf("%s %s: %w", p.flag, p.addr, err)
		}
	}
	return l, nil
}

// open opens the database; lease is nil where none was asked for.
func open(ctx context.Context, cfg *config.Node, ports *listeners) (*engine.DB, *membership, error) {
	if len(cfg.Etcd) > 0 {
		return openInGroup(ctx, cfg, ports)
	}
	db, err := openNode(cfg)
	return db, nil, err
}

// serve runs a node until ctx ends or a part of it fails.
func serve(ctx context.Context, cfg *config.Node) error {
	ports, err := listen(cfg)
	if err != nil {
		return err
	}
	db, lease, err := open(ctx, cfg, &ports)
	if err != nil {
		ports.close()
		return err
	}
	n := makeNode(cfg, db)
	n.lease, n.respAddr, n.joined = lease, ports.resp.Addr().String(), make(chan struct{})
	if ports.ship != nil {
		n.shipAddr = ports.ship.Addr().String()
	}
	if ports.http != nil {
		n.httpAddr = ports.http.Addr().String()
	}
	err = n.run(ctx, &ports)
	ports.close()
	if lease != nil { // nothing is written any more, and followers have been sent all
		err = errors.Join(err, lease.Close())
	}
	if closeErr := db.Close(); closeErr != nil {
		return errors.Join(err, closeErr)
	}
	if err == nil {
		cfg.Logger.Info("stopped")
	}
	return err
}

// run serves the ports until ctx ends, then drains: clients first, because their writes may wait for followers.
func (n *node) run(ctx context.Context, ports *listeners) error {
	cfg := n.cfg
	failed := make(chan error, 3)
	if ports.ship != nil {
		if err := n.openShip(); err != nil {
			return err
		}
		go func() { failed <- wrap("ship", n.leader.Serve(ports.ship)) }() // ends by leader.Shutdown
	}
	clients := resp.New(resp.Options{
		Store: store{n.db, &fullDisk{log: n.log}}, Node: n, Password: cfg.Password, MaxClients: cfg.MaxClients, ClientMemory: cfg.ClientMemory,
		IdleTimeout: cfg.ClientTimeout, Logger: n.log,
	})
	n.clients = clients.Stats
	var web *httpd.Server
	if ports.http != nil {
		web = httpd.New(httpd.Options{Source: n, Control: n, Password: cfg.Password, TLS: cfg.ServerTLS, Logger: n.log})
		go func() { failed <- wrap("http", web.Serve(ports.http)) }() // ends by web.Shutdown
	}
	if err := n.join(ctx); err != nil {
		return err
	}
	close(n.joined)
	watched, stopWatch := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { n.watch(watched) }) // ended by stopWatch
	if cfg.ScrubInterval > 0 {
		watch.Go(func() { n.repairs.run(watched, cfg.ScrubInterval) }) // ended by stopWatch
	}
	if n.lease != nil {
		watch.Go(func() { n.automate(watched) }) // ended by stopWatch
	}
	ln := ports.resp
	if cfg.ServerTLS != nil {
		ln = tls.NewListener(ln, cfg.ServerTLS)
	}
	go func() { failed <- wrap("listen", clients.Serve(ln)) }() // ends by clients.Shutdown
	n.log.Info("ready", "role", n.db.Role().String(), "dir", cfg.Dir, "listen", n.respAddr, "ship", n.shipAddr, "http", n.httpAddr, "follow", cfg.Follow)

	var cause error
	select {
	case <-ctx.Done():
		n.log.Info("draining")
	case cause = <-failed:
	}
	if n.AbortFailover() == nil {
		n.failovers.done.Wait()
	}
	stopWatch() // this node's role stays what it is, and it follows nobody anew
	watch.Wait()
	drain, cancel := context.WithTimeout(context.Background(), cfg.DrainTimeout)
	defer cancel()
	if err := clients.Shutdown(drain); err != nil {
		n.log.Warn("clients were cut off", "error", err)
	}
	n.endFollowing()
	if n.leader != nil {
		if err := n.leader.Shutdown(drain); err != nil {
			n.log.Warn("followers were cut off", "error", err)
		}
	}
	if web != nil {
		if err := web.Shutdown(drain); err != nil {
			n.log.Warn("requests were cut off", "error", err)
		}
	}
	return cause
}

// openShip makes what serves followers and other nodes' calls.
func (n *node) openShip() error {
	leader, err := ship.NewLeader(n.db, &ship.LeaderOptions{
		Secret: n.cfg.Secret, TLS: n.cfg.ShipTLS, Name: n.cfg.Name, Addr: n.respAddr, Upstream: n.currentFollower, Logger: n.log,
		Answer: n.answer,
	})
	if err != nil {
		return err
	}
	n.leader = leader
	n.db.SetElectorate(electorate{n})
	n.db.OnAppend(leader.Push)
	return nil
}

// join takes up the role that flags, log and the other nodes give, before a client is served: others may have gone on without this node.
func (n *node) join(ctx context.Context) error {
	if n.cfg.Follow != "" {
		n.resumes = n.ledLast() && !n.cfg.LogOnly
		if err := n.follow(n.cfg.Follow, ""); err != nil {
			return err
		}
	}
	n.look(ctx)
	return nil
}

// wrap names the port that failed; the ends that Shutdown causes are none.
func wrap(port string, err error) error {
	if err == nil || errors.Is(err, resp.ErrServerClosed) || errors.Is(err, http.ErrServerClosed) || errors.Is(err, ship.ErrLeaderClosed) {
		return nil
	}
	return fmt.Errorf("%s: %w", port, err)
}
