package mtls

import "strings"

// Stranger says in words, from the text of a transport's error, that no gRPC in plain
// text is spoken there: what listens is another program, or wants TLS. Empty: the text
// says nothing of the kind.
func Stranger(text string) string {
	// It hung up before it said a word, or we did: so does a node that is stopped.
	if strings.Contains(text, "use of closed network connection") || strings.Contains(text, "i/o timeout") {
		return ""
	}
	for _, sign := range []string{"server preface", "malformed HTTP", "frame too large"} {
		if strings.Contains(text, sign) {
			return "what listens there is no rookeryd, or wants TLS (--tls-cert, --tls-key, --tls-ca)"
		}
	}
	return ""
}
