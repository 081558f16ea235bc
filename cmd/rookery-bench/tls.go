package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// identityFlags are the flags that say who asks a running cluster. The variables
// are rookeryctl's, which --import-by rookeryctl inherits.
func (s *settings) identityFlags(fs *flag.FlagSet) {
	fs.StringVar(&s.tls.Cert, "tls-cert", os.Getenv("ROOKERY_TLS_CERT"), "with --endpoints: ask as the holder of this certificate, an operator's; a PEM `file`")
	fs.StringVar(&s.tls.Key, "tls-key", os.Getenv("ROOKERY_TLS_KEY"), "the key of --tls-cert, a PEM `file`")
	fs.StringVar(&s.tls.CA, "tls-ca", os.Getenv("ROOKERY_TLS_CA"), "the CA that the nodes' certificates are of, a PEM `file`")
	fs.StringVar(&s.tls.Map, "cert-map", os.Getenv("ROOKERY_CERT_MAP"), "`file` that says which certificates of another CA are nodes'")
}

// loadIdentity has the cluster be asked as the flags say. A node that is started
// here speaks plain text on loopback.
func (s *settings) loadIdentity() error {
	if len(s.endpoints) == 0 {
		return nil
	}
	s.secured = mtls.Client(nil, nil)
	if s.tls == (mtls.Paths{}) {
		return nil
	}
	if err := s.tls.Complete(); err != nil {
		return fmt.Errorf("%w: %s", errUsage, strings.TrimPrefix(err.Error(), "mtls: "))
	}
	files, err := mtls.Load(s.tls, nil, nil)
	if err != nil {
		return fmt.Errorf("%w: %s", errUsage, strings.ReplaceAll(err.Error(), "mtls: ", ""))
	}
	s.secured = mtls.Client(files, nil)
	return nil
}

// identity is how the generated stubs connect to the cluster.
func (s *settings) identity() []grpc.DialOption {
	if s.secured == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithTransportCredentials(s.secured)}
}

// clientIdentity is how the client library does.
func (s *settings) clientIdentity() []client.Option {
	if s.secured == nil {
		return nil
	}
	return []client.Option{client.WithCredentials(s.secured)}
}

// identityEnv is how rookeryctl does: as the flags say, not as the environment.
func (s *settings) identityEnv() []string {
	if s.secured == nil {
		return []string{"ROOKERY_TLS_CERT=", "ROOKERY_TLS_KEY=", "ROOKERY_TLS_CA=", "ROOKERY_CERT_MAP="}
	}
	return []string{"ROOKERY_TLS_CERT=" + s.tls.Cert, "ROOKERY_TLS_KEY=" + s.tls.Key, "ROOKERY_TLS_CA=" + s.tls.CA, "ROOKERY_CERT_MAP=" + s.tls.Map}
}
