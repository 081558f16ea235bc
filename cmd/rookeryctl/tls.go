package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/mtls"
)

// identityFlags are the flags that say who asks.
func (a *app) identityFlags(root *cobra.Command, getenv func(string) string) {
	flags := root.PersistentFlags()
	flags.StringVar(&a.tls.Cert, "tls-cert", getenv("ROOKERY_TLS_CERT"), "ask as the holder of this certificate, a PEM `file`; without it in plain text")
	flags.StringVar(&a.tls.Key, "tls-key", getenv("ROOKERY_TLS_KEY"), "the key of --tls-cert, a PEM `file`")
	flags.StringVar(&a.tls.CA, "tls-ca", getenv("ROOKERY_TLS_CA"), "the CA that the nodes' certificates are of, a PEM `file`")
	flags.StringVar(&a.tls.Map, "cert-map", getenv("ROOKERY_CERT_MAP"), "`file` that says which certificates of another CA are nodes', as rookeryd's --cert-map")
}

// secured returns how to reach nodes: by the certificate that was given, or in
// plain text.
func (a *app) secured() (client.Option, error) {
	if a.tls == (mtls.Paths{}) {
		return client.WithCredentials(mtls.Client(nil, nil)), nil
	}
	if err := a.tls.Complete(); err != nil {
		return nil, usagef("%s", strings.TrimPrefix(err.Error(), "mtls: "))
	}
	files, err := mtls.Load(a.tls, nil, nil)
	if err != nil {
		return nil, usagef("%s", strings.ReplaceAll(err.Error(), "mtls: ", ""))
	}
	return client.WithCredentials(mtls.Client(files, nil)), nil
}

// handshake is the sentence of internal/mtls in the text of a transport's error,
// "" if there is none.
func handshake(text string) string {
	i := strings.LastIndex(text, "mtls: ")
	if i < 0 {
		return ""
	}
	sentence := text[i+len("mtls: "):]
	return plain(strings.TrimRight(sentence, `"`))
}
