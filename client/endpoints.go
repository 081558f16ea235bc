package client

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
)

// unixScheme begins an endpoint that is a node's own socket.
const unixScheme = "unix:"

// ParseEndpoints reads nodes as people write them, separated by commas: host:port, or
// unix:/path. It returns what Dial takes, each once, in the order given.
//
// Errors: one that names what is no endpoint, or says that there is none.
func ParseEndpoints(list string) ([]string, error) {
	var all []string
	for e := range strings.SplitSeq(list, ",") {
		if e = strings.TrimSpace(e); e == "" {
			continue
		}
		if path, is := strings.CutPrefix(e, unixScheme); is {
			if path = strings.TrimPrefix(path, "//"); !filepath.IsAbs(path) {
				return nil, fmt.Errorf("client: %q: a unix socket is unix:/path", e)
			}
			e = unixScheme + filepath.Clean(path) // two leading slashes would be read as an authority
		} else if _, port, err := net.SplitHostPort(e); err != nil || port == "" {
			return nil, fmt.Errorf("client: %q is not host:port", e)
		}
		if !slices.Contains(all, e) {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("client: no node is named")
	}
	return all, nil
}
