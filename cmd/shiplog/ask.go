package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/redcon"
)

// maxAnswer bounds what is read of another node's INFO, in bytes.
const maxAnswer = 64 << 10

// shipper is what a node's INFO says of its log.
type shipper struct {
	addr     string // where it ships from
	node     string
	database string
}

// askShipper asks the node whose RESP address is given where it ships from. The password is this node's own: nodes
// that follow each other share it, as Redis's masterauth does.
func askShipper(ctx context.Context, addr, password string, config *tls.Config) (*shipper, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var d interface {
		DialContext(ctx context.Context, network, addr string) (net.Conn, error)
	} = &net.Dialer{}
	if config != nil {
		d = &tls.Dialer{Config: config}
	}
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = nc.Close() }()
	deadline, _ := ctx.Deadline()
	if err := nc.SetDeadline(deadline); err != nil {
		return nil, err
	}
	r := bufio.NewReaderSize(io.LimitReader(nc, maxAnswer), 4096)
	if password != "" {
		if _, err := ask(nc, r, "AUTH", password); err != nil {
			return nil, err
		}
	}
	text, err := ask(nc, r, "INFO", "shiplog")
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.SplitSeq(text, "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = value
		}
	}
	ship, ok := fields["ship_addr"]
	switch {
	case !ok:
		return nil, errors.New("it is not a shiplog node")
	case ship == "":
		return nil, errors.New("it serves no followers")
	}
	host, port := splitAddr(ship, addr)
	return &shipper{addr: net.JoinHostPort(host, port), node: fields["node_id"], database: fields["database_id"]}, nil
}

// ask sends a command and returns the text of its reply.
func ask(w io.Writer, r *bufio.Reader, args ...string) (string, error) {
	p := redcon.AppendArray(nil, len(args))
	for _, a := range args {
		p = redcon.AppendBulkString(p, a)
	}
	if _, err := w.Write(p); err != nil {
		return "", err
	}
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	switch {
	case strings.HasPrefix(line, "+"):
		return line[1:], nil
	case strings.HasPrefix(line, "-"):
		return "", errors.New(line[1:])
	case !strings.HasPrefix(line, "$"):
		return "", fmt.Errorf("unexpected reply %.40q", line)
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 || n > maxAnswer {
		return "", fmt.Errorf("unexpected reply %.40q", line)
	}
	text := make([]byte, n+2)
	if _, err := io.ReadFull(r, text); err != nil {
		return "", err
	}
	return string(text[:n]), nil
}
