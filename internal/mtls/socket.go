package mtls

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"
)

// socketSuffix ends the names of who comes through a unix socket.
const socketSuffix = "@unix"

// maxSocketPath is how long the path of a unix socket may be: what every kernel
// that has them takes.
const maxSocketPath = 103

// ErrSocketPath: the path of a unix socket is too long for the kernel.
var ErrSocketPath = errors.New("mtls: the path of a unix socket has at most 103 octets")

// Socket listens on a unix socket at path, for who is on this machine and needs no
// certificate: root, and the user that this process runs as. They come in as the
// operator "root@unix" (or that user's name); whoever else connects is refused by
// the kernel, since the file has the mode 0600, and by [Server], which asks the
// kernel who is there. The file goes when the listener is closed.
//
// A socket that a killed process has left behind is replaced; one that somebody
// answers at, and a file that is no socket, is an error.
func Socket(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("%w: %s has %d", ErrSocketPath, path, len(path))
	}
	if err := socketSupport(); err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("mtls: unix socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("mtls: unix socket: %s is there and is no socket", path)
	default:
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("mtls: unix socket: somebody listens at %s", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("mtls: unix socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("mtls: unix socket: %w", err)
	}
	// Who connects before this is asked for its user like all others.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("mtls: unix socket: %w", err), l.Close())
	}
	return l, nil
}

// socketIdentity is who a user of this machine is: root and self are operators.
func socketIdentity(uid, self uint32, name string) (Identity, *Refusal) {
	switch uid {
	case 0:
		return Identity{Operator, "root" + socketSuffix}, nil
	case self:
		return Identity{Operator, name + socketSuffix}, nil
	}
	return Identity{}, refuse(WrongUser, nil, nil, "the user with the id %d came through the unix socket, which is for root and for %s only", uid, name)
}
