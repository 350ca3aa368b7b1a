package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"shiplog/cmd/shiplog/internal/config"
	"shiplog/cmd/shiplog/internal/httpd"
)

// clientFlags are how a command reaches the HTTP address of a node.
type clientFlags struct {
	passFile string
	useTLS   bool
	tls      config.TLS
	timeout  time.Duration // before register: the default, where 10 s are too short
}

func (c *clientFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&c.passFile, "requirepass-file", "", "file with the node's password")
	fs.BoolVar(&c.useTLS, "tls", false, "the node serves TLS; also set by --tls-ca")
	c.tls.Register(fs)
	fs.DurationVar(&c.timeout, "timeout", cmp.Or(c.timeout, 10*time.Second), "longest wait for each answer; 0: no bound")
}

// settings are how a node is dialled by TLS; nil: it is not.
func (c *clientFlags) settings() (*tls.Config, error) {
	settings, err := c.tls.Client()
	if err == nil && settings == nil && c.useTLS {
		settings = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return settings, err
}

// client asks nodes by HTTP.
type client struct {
	http     http.Client
	scheme   string
	password string
}

// client checks the flags, and the addresses that the command was given.
func (c *clientFlags) client(addrs ...string) (*client, error) {
	for _, addr := range addrs {
		if err := config.HostPort("--http", addr); err != nil {
			return nil, err
		}
	}
	if c.timeout < 0 {
		return nil, fmt.Errorf("--timeout %v is negative", c.timeout)
	}
	password, err := config.ReadPassword(c.passFile)
	if err != nil {
		return nil, err
	}
	settings, err := c.settings()
	if err != nil {
		return nil, err
	}
	cl := &client{http: http.Client{Timeout: c.timeout}, scheme: "http", password: password}
	if settings != nil {
		cl.scheme = "https"
		cl.http.Transport = &http.Transport{TLSClientConfig: settings}
	}
	return cl, nil
}

// maxResponse bounds what is read of a node's answer, in bytes.
const maxResponse = 4 << 20

// get decodes the JSON answer of a path into v.
func (c *client) get(ctx context.Context, addr, path string, v any) error {
	return c.do(ctx, http.MethodGet, addr, path, v)
}

// post has the node do something, and decodes its JSON answer into v.
func (c *client) post(ctx context.Context, addr, path string, v any) error {
	return c.do(ctx, http.MethodPost, addr, path, v)
}

func (c *client) do(ctx context.Context, method, addr, path string, v any) error {
	u := url.URL{Scheme: c.scheme, Host: addr}
	req, err := http.NewRequestWithContext(ctx, method, u.String()+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if c.password != "" {
		req.SetBasicAuth("default", c.password)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return unanswered(addr, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxResponse))
	if err != nil {
		return err
	}
	text := strings.TrimSpace(string(body[:min(len(body), 1000)]))
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusConflict: // the node's own words say why it does not do it
		return fmt.Errorf("%s: %s", addr, text)
	case http.StatusUnauthorized:
		return fmt.Errorf("%s: the node wants another password: give --requirepass-file", addr)
	default:
		return fmt.Errorf("%s%s: %s: %s", addr, path, res.Status, text)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("%s%s: %w", addr, path, err)
	}
	return nil
}

// unanswered says what to look at when a node gives no answer by HTTP.
func unanswered(addr string, err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	var op *net.OpError
	switch {
	case errors.Is(u.Err, context.Canceled):
		return u.Err
	case u.Timeout():
		return fmt.Errorf("%s gives no answer within --timeout: %w", addr, u.Err)
	case errors.As(u.Err, &op) && op.Op == "dial":
		return fmt.Errorf("no node answers at %s: %w", addr, u.Err)
	}
	return fmt.Errorf("no answer from %s, is that what its node has as --http? %w", addr, u.Err)
}

func (c *client) status(ctx context.Context, addr string) (s httpd.Status, err error) {
	return s, c.get(ctx, addr, "/status", &s)
}

func (c *client) digest(ctx context.Context, addr string, lsn uint64) (d httpd.Digest, err error) {
	return d, c.get(ctx, addr, fmt.Sprintf("/digest?lsn=%d", lsn), &d)
}
