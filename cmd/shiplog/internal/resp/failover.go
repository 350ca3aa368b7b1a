package resp

import (
	"context"
	"net"
	"strconv"
	"time"
)

func init() {
	register([]command{
		{name: "failover", arity: -1, flags: flagLoading | flagAdmin | flagBarrier, group: "server", since: "6.2.0", about: "Starts a coordinated failover from a server to one of its replicas.", handle: failover},
	})
}

// Failover asks for a hand-over of the lead.
type Failover struct {
	To      string        // RESP address of the follower that is to lead; empty: the one that has most
	Force   bool          // when Timeout is over have it lead although it has not all; what it lacks it fetches
	Timeout time.Duration // how long the follower may take to have all; then this node leads on, unless Force. Zero: the node's own limit
}

func failover(c *conn, args [][]byte) {
	f, refusal := parseFailover(args)
	ctx, cancel := context.WithTimeout(c.srv.ctx, 10*time.Second)
	defer cancel()
	var err error
	switch {
	case refusal != "":
	case f == nil:
		err = c.srv.node.AbortFailover()
	case !c.srv.node.Info().Leader:
		refusal = "ERR FAILOVER is not valid when server is a replica."
	default:
		err = c.srv.node.Failover(ctx, *f)
	}
	switch {
	case refusal != "":
		c.out.error(refusal)
	case err != nil:
		c.out.failure(err)
	default:
		c.out.ok()
	}
}

// parseFailover reads the arguments as Redis does; nil: ABORT.
func parseFailover(args [][]byte) (f *Failover, refusal string) {
	f = &Failover{}
	timed := false
	for i := 1; i < len(args); i++ {
		switch {
		case is(args[i], "timeout") && i+1 < len(args) && !timed:
			ms, ok := parseInt(args[i+1])
			if !ok || ms <= 0 || ms > int64(24*time.Hour/time.Millisecond) {
				return nil, "ERR FAILOVER timeout must be greater than 0"
			}
			f.Timeout, timed = time.Duration(ms)*time.Millisecond, true
			i++
		case is(args[i], "abort") && len(args) == 2:
			return nil, ""
		case is(args[i], "to") && i+2 < len(args) && f.To == "":
			port, ok := parseInt(args[i+2])
			if !ok || port < 1 || port > 65535 {
				return nil, "ERR value is not an integer or out of range"
			}
			f.To = net.JoinHostPort(string(args[i+1]), strconv.FormatInt(port, 10))
			i += 2
		case is(args[i], "force") && f.To != "" && !f.Force:
			f.Force = true
		default:
			return nil, errSyntax
		}
	}
	if f.Force && !timed {
		return nil, "ERR FAILOVER with force option requires both a timeout and target HOST and IP."
	}
	return f, ""
}
