package mtls

import (
	"net"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

func socketSupport() error { return nil }

// socketUser asks the kernel who has connected.
func socketUser(raw net.Conn) (Identity, *Refusal) {
	conn, ok := raw.(syscall.Conn)
	if !ok {
		return Identity{}, refuse(WrongUser, nil, nil, "nobody can say who is at the other end of the unix socket")
	}
	sc, err := conn.SyscallConn()
	if err != nil {
		return Identity{}, refuse(WrongUser, nil, err, "unix socket: %v", err)
	}
	var cred *syscall.Ucred
	var credErr error
	if err := sc.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil {
		return Identity{}, refuse(WrongUser, nil, err, "unix socket: %v", err)
	}
	if credErr != nil {
		return Identity{}, refuse(WrongUser, nil, credErr, "unix socket: %v", credErr)
	}
	self := os.Getuid()
	name := "uid " + strconv.Itoa(self)
	if u, err := user.LookupId(strconv.Itoa(self)); err == nil {
		name = u.Username
	}
	return socketIdentity(cred.Uid, uint32(self), name)
}
