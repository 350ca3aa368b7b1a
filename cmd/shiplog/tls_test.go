package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// certificates writes an authority, and a certificate for 127.0.0.1 that it has signed, and returns the flags for them.
func certificates(t *testing.T, dir string) (flags []string, pool *x509.CertPool) {
	t.Helper()
	sign := func(serial int64, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "test"},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: parent == nil, BasicConstraintsValid: true,
			KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if parent == nil {
			parent, parentKey = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return signed, key
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ca, caKey := sign(1, nil, nil)
	cert, key := sign(2, ca, caKey)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(ca)
	return []string{
		"--tls-ca", write("ca.pem", "CERTIFICATE", ca.Raw),
		"--tls-cert", write("cert.pem", "CERTIFICATE", cert.Raw),
		"--tls-key", write("key.pem", "EC PRIVATE KEY", der),
	}, pool
}

// TestTLS: every port speaks TLS, and a follower finds its leader by certificate.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	flags, pool := certificates(t, dir)
	leader := startTLSNode(t, filepath.Join(dir, "l"), pool, flags...)
	follower := startTLSNode(t, filepath.Join(dir, "f"), pool, append(flags, "--follow", leader.ship)...)
	client := func(addr string) *redis.Client {
		c := redis.NewClient(&redis.Options{
			Addr: addr, TLSConfig: &tls.Config{RootCAs: pool},
			MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		})
		t.Cleanup(func() { c.Close() })
		return c
	}
	if err := client(leader.resp).Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	follower.until("the write arrives", func() bool { return client(follower.resp).Get(t.Context(), "k").Val() == "v" })
	host, port, _ := net.SplitHostPort(leader.resp)
	if err := client(follower.resp).Do(t.Context(), "REPLICAOF", host, port).Err(); err != nil {
		t.Errorf("REPLICAOF: %v", err)
	}
	if code, _, errs := command("status", "--http", leader.http, flags[0], flags[1]); code != exitOK {
		t.Errorf("status: %s", errs)
	}
	if code, _, _ := command("status", "--http", leader.http); code != exitFailure {
		t.Error("plain HTTP was answered")
	}
	plain := startNode(t, filepath.Join(dir, "p"), "--follow", leader.ship)
	plain.until("a follower without TLS is refused", func() bool {
		u := plain.status().Upstream
		return u != nil && u.Error != "" && !u.Connected
	})
	plain.stop()
	follower.stop()
	leader.stop()
}
