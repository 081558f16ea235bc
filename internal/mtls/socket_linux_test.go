package mtls

import (
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

func TestSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "sock") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "rookery.sock")
	l, err := Socket(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v; want the mode 0600", info.Mode(), err)
	}
	if _, err := Socket(path); err == nil || !strings.Contains(err.Error(), "somebody listens") {
		t.Errorf("a second listener: got %v", err)
	}
	s := &service{log: &logged{}}
	g := grpc.NewServer(grpc.Creds(Server(nil, Listening{Proto: "client", Log: s.log.logger()})), grpc.UnaryInterceptor(s.note))
	healthv1.RegisterHealthServer(g, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		<-served
		if _, err := os.Lstat(path); err == nil {
			t.Error("the socket stays behind")
		}
	})

	self, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	want := Identity{Operator, self.Username + "@unix"}
	for _, creds := range []credentials.TransportCredentials{insecure.NewCredentials(), Client(nil, nil), Client(load(t, newPKI(t).issue(Identity{Backend, "be1"})), nil)} {
		if err := call(t, "unix:"+path, creds); err != nil {
			t.Errorf("over the socket: %v", err)
		}
		if got := s.caller(); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}

	// Another user, whom the mode would not stop.
	if os.Getuid() == 0 {
		for file, mode := range map[string]os.FileMode{dir: 0o755, path: 0o666} {
			if err := os.Chmod(file, mode); err != nil {
				t.Fatal(err)
			}
		}
		self, err := os.Open("/proc/self/exe") // the file is where others cannot look
		if err != nil {
			t.Fatal(err)
		}
		defer self.Close()
		cmd := exec.Command("/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{self}
		cmd.Dir, cmd.Env = "/", []string{dialEnv + "=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err != nil || strings.Contains(string(out), "dial:") || strings.Contains(string(out), "read") && !strings.Contains(string(out), "read 0 octets") {
			t.Errorf("another user: %v, %s; want that it reads nothing", err, out)
		}
		s.log.wait(t, "level=WARN", "reason=wrong-user", "the user with the id 65534")
	}
}

func TestSocketIdentity(t *testing.T) {
	for _, test := range []struct {
		uid, self uint32
		want      string
	}{{0, 998, "operator root@unix"}, {998, 998, "operator rookery@unix"}, {0, 0, "operator root@unix"}, {1000, 998, "nobody"}, {65534, 998, "nobody"}} {
		id, r := socketIdentity(test.uid, test.self, "rookery")
		if id.String() != test.want || (r == nil) != (test.want != "nobody") {
			t.Errorf("user %d at a node of user %d: got %v, %v; want %s", test.uid, test.self, id, r, test.want)
		}
	}
}

func TestSocketPlace(t *testing.T) {
	dir, err := os.MkdirTemp("", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if _, err := Socket(filepath.Join(dir, strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "at most 103") {
		t.Errorf("a long path: got %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Socket(file); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("a file: got %v", err)
	}
	// What a killed process leaves behind.
	stale := filepath.Join(dir, "stale"+strconv.Itoa(os.Getpid()))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	again, err := Socket(stale)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	again.Close()
}
