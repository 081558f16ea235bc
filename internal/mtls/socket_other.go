//go:build !linux

package mtls

import (
	"errors"
	"fmt"
	"net"
)

func socketSupport() error {
	return fmt.Errorf("mtls: a unix socket needs a kernel that says who has connected, which is asked on Linux only: %w", errors.ErrUnsupported)
}

func socketUser(net.Conn) (Identity, *Refusal) {
	return Identity{}, refuse(WrongUser, nil, nil, "nobody can say who is at the other end of the unix socket")
}
