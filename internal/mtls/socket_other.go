//go:build !linux

package mtls

import (
	"errors"
	"net"
)

func socketSupport() error {
	return errors.New("mtls: a unix socket needs a kernel that says who has connected; this one is asked on Linux only")
}

func socketUser(net.Conn) (Identity, *Refusal) {
	return Identity{}, refuse(WrongUser, nil, nil, "nobody can say who is at the other end of the unix socket")
}
