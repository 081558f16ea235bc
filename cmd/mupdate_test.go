package cmd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rookery-mail/rookery/adapter/mupdate/mupdateclient"
)

// mupdateCommand speaks MUPDATE in a script, as Cyrus would. NODE is a node's name, or
// "gateway"; all passwords are "secret"; in ACLs blanks stand for TABs.
//
//	mupdate NODE LOGIN COMMAND ARGS...    one connection; what is answered is the next
//	                                      stdout; with ! it is a NO, or no answer at all,
//	                                      within five seconds
//	mupdate follow NAME NODE LOGIN        UPDATE, in the background, up to its OK
//	mupdate noop NAME                     NOOP there; what it has been told of every name
//	                                      is the next stdout
//	mupdate ended NAME                    wait until it ends
//	mupdate unavailable NODE FRONTEND BACKEND
//	                                      every command is NO, or no answer, in time
//	mupdate startgateway FLAGS...         start a rookery-gateway that asks the nodes
//	mupdate mirror NAME FLAGS...          start rookeryctl mirror, which writes to NAME
//	mupdate interrupt NAME CODE           ^C for it; it must end with that exit code
func mupdateCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: mupdate NODE LOGIN COMMAND ARGS...")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	switch args[0] {
	case "unavailable":
		allUnavailable(ctx, ts, args[1], args[2], args[3])
	case "mirror":
		ts.Check(startMirror(ts, args[1], args[2:]))
	case "interrupt":
		ts.Check(endMirror(ts, args[1], args[2]))
	case "startgateway":
		ts.Check(startGateway(ts, args[1:]))
	case "follow":
		f, err := follow(ctx, ts, args[2], args[3])
		if neg {
			if err == nil || errors.As(err, new(*mupdateclient.Refused)) {
				ts.Fatalf("UPDATE was answered, which a slave takes for the end of the listing: %v", err)
			}
			return
		}
		ts.Check(err)
		following.Store(followKey{ts.Getenv("WORK"), args[1]}, f)
	case "noop", "ended":
		v, ok := following.Load(followKey{ts.Getenv("WORK"), args[1]})
		if !ok {
			ts.Fatalf("nobody follows as %s", args[1])
		}
		f := v.(*follower)
		if args[0] == "ended" {
			select {
			case <-f.done:
			case <-ctx.Done():
				ts.Fatalf("%s goes on", args[1])
			}
			return
		}
		begun := time.Now()
		err := f.noop(ctx)
		if (err != nil) != neg {
			ts.Fatalf("NOOP: %v", err)
		}
		if took := time.Since(begun); took > 6*time.Second {
			ts.Fatalf("NOOP took %v", took)
		}
		fmt.Fprint(ts.Stdout(), f.told())
	default:
		begun := time.Now()
		out, err := oneMUPDATE(ctx, ts, args[0], args[1], args[2:])
		fmt.Fprintln(ts.Stdout(), out)
		if err != nil {
			fmt.Fprintln(ts.Stdout(), strings.TrimPrefix(err.Error(), "mupdateclient: "))
		}
		if (err != nil) != neg {
			ts.Fatalf("%v: %s %v", args, out, err)
		}
		// Five seconds are promised; a machine may be busy.
		if took := time.Since(begun); took > 8*time.Second {
			ts.Fatalf("%v took %v", args, took)
		}
	}
}

// unavailable are commands that need a majority, and whose they are.
var unavailable = []struct {
	backend bool
	args    []string
}{
	{false, []string{"find", "user.a"}}, {false, []string{"find", "user.none"}}, {false, []string{"list"}}, {false, []string{"noop"}},
	{true, []string{"list", "be1.example.org!"}},
	{true, []string{"reserve", "user.b", "be1.example.org!default"}}, {true, []string{"activate", "user.b", "be1.example.org!default", ""}},
	{true, []string{"deactivate", "user.a", "be1.example.org!default"}}, {true, []string{"delete", "user.a"}},
}

// allUnavailable checks that without a majority nothing is answered, in time.
func allUnavailable(ctx context.Context, ts *testscript.TestScript, node, frontend, backend string) {
	var all sync.WaitGroup
	wrong := make([]string, len(unavailable))
	for i, u := range unavailable {
		all.Go(func() {
			login := frontend
			if u.backend {
				login = backend
			}
			begun := time.Now()
			out, err := oneMUPDATE(ctx, ts, node, login, u.args)
			// Five seconds are promised; a machine may be busy.
			if took := time.Since(begun); err == nil || out != "" || took > 8*time.Second {
				wrong[i] = fmt.Sprintf("%v: %q, %v after %v", u.args, out, err, took)
			}
		})
	}
	all.Wait()
	for _, text := range wrong {
		if text != "" {
			ts.Fatalf("%s", text)
		}
	}
}

var mupdateServing = regexp.MustCompile(`msg="serving MUPDATE" .*\baddr=(\S+)`)

// mupdateAddress finds where a node answers MUPDATE in its log, the last time it says so.
func mupdateAddress(ctx context.Context, ts *testscript.TestScript, node string) (string, error) {
	for {
		log, err := os.ReadFile(filepath.Join(ts.Getenv("WORK"), node+".log"))
		if err != nil {
			return "", err
		}
		if all := mupdateServing.FindAllSubmatch(log, -1); all != nil {
			return string(all[len(all)-1][1]), nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s does not serve MUPDATE", node)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func dialMUPDATE(ctx context.Context, ts *testscript.TestScript, node, login string) (*mupdateclient.Client, error) {
	addr, err := mupdateAddress(ctx, ts, node)
	if err != nil {
		return nil, err
	}
	c, err := mupdateclient.Dial(ctx, addr, mupdateclient.Options{})
	if err != nil {
		return nil, err
	}
	if err := c.Login(ctx, login, "secret"); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func oneMUPDATE(ctx context.Context, ts *testscript.TestScript, node, login string, args []string) (string, error) {
	c, err := dialMUPDATE(ctx, ts, node, login)
	if err != nil {
		return "", err
	}
	defer c.Close()
	for len(args) < 4 {
		args = append(args, "")
	}
	out := ""
	switch args[0] {
	case "reserve":
		err = c.Reserve(ctx, args[1], args[2])
	case "activate":
		err = c.Activate(ctx, args[1], args[2], strings.ReplaceAll(args[3], " ", "\t"))
	case "deactivate":
		err = c.Deactivate(ctx, args[1], args[2])
	case "delete":
		err = c.Delete(ctx, args[1])
	case "noop":
		err = c.Noop(ctx)
	case "find":
		var r mupdateclient.Record
		var found bool
		if r, found, err = c.Find(ctx, args[1]); found {
			out = recordText(r)
		}
	case "list":
		var lines []string
		for r, broken := range c.List(ctx, args[1]) {
			if err = broken; err == nil {
				lines = append(lines, recordText(r))
			}
		}
		out = strings.Join(lines, "\n")
	default:
		return "", fmt.Errorf("what is %s?", args[0])
	}
	if err != nil {
		return out, err
	}
	return out, c.Logout(ctx)
}

func recordText(r mupdateclient.Record) string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Kind, r.Name, r.Location, strings.ReplaceAll(r.ACL, "\t", " ")))
}

// following are the followers of all scripts.
var following sync.Map

type followKey struct{ work, name string }

// follower is an UPDATE that goes on.
type follower struct {
	c     *mupdateclient.Client
	done  chan struct{}
	err   error
	noops chan struct{}

	mu    sync.Mutex
	names map[string]string
}

func follow(ctx context.Context, ts *testscript.TestScript, node, login string) (*follower, error) {
	c, err := dialMUPDATE(ctx, ts, node, login)
	if err != nil {
		return nil, err
	}
	f := &follower{c: c, done: make(chan struct{}), noops: make(chan struct{}, 1), names: map[string]string{}}
	ts.Defer(func() { c.Close() })
	listed := make(chan struct{})
	go func() {
		defer close(f.done)
		f.err = c.Update(context.Background(), f.take, func() error { close(listed); return nil }, 0, func() error {
			f.noops <- struct{}{}
			return nil
		})
	}()
	select {
	case <-listed:
		return f, nil
	case <-f.done:
		return nil, f.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *follower) take(r mupdateclient.Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.names[r.Name] = recordText(r)
	if r.Kind == mupdateclient.Deleted {
		delete(f.names, r.Name)
	}
	return nil
}

func (f *follower) noop(ctx context.Context) error {
	if err := f.c.Ping(); err != nil {
		return err
	}
	select {
	case <-f.noops:
		return nil
	case <-f.done:
		return errors.Join(errors.New("it ended"), f.err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *follower) told() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for _, text := range f.names {
		lines = append(lines, text+"\n")
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// startGateway starts a rookery-gateway, its log in gateway.log.
func startGateway(ts *testscript.TestScript, flags []string) error {
	log, err := os.Create(filepath.Join(ts.Getenv("WORK"), "gateway.log"))
	if err != nil {
		return err
	}
	cmd := exec.Command(filepath.Join(bin, "rookery-gateway"), append([]string{"--endpoints", ts.Getenv("ROOKERY_ENDPOINTS")}, flags...)...)
	cmd.Dir, cmd.Stderr = ts.Getenv("WORK"), log
	if err := cmd.Start(); err != nil {
		return err
	}
	ts.Defer(func() {
		cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			ts.Fatalf("rookery-gateway, told to end: %v", err)
		}
		log.Close()
	})
	return nil
}

// mirrors are the rookeryctl mirror of all scripts.
var mirrors sync.Map

// startMirror starts rookeryctl mirror, its output in a file.
func startMirror(ts *testscript.TestScript, name string, flags []string) error {
	out, err := os.Create(ts.MkAbs(name))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(filepath.Join(bin, "rookeryctl"), append([]string{"mirror", "--password-file", "password", "--settle", "300ms"}, flags...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = ts.Getenv("WORK"), out, out
	cmd.Env = append(os.Environ(), "ROOKERY_ENDPOINTS="+ts.Getenv("ROOKERY_ENDPOINTS"))
	if err := cmd.Start(); err != nil {
		return err
	}
	mirrors.Store(followKey{ts.Getenv("WORK"), name}, cmd)
	ts.Defer(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return nil
}

func endMirror(ts *testscript.TestScript, name, code string) error {
	v, ok := mirrors.Load(followKey{ts.Getenv("WORK"), name})
	if !ok {
		return fmt.Errorf("there is no mirror %s", name)
	}
	cmd := v.(*exec.Cmd)
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	_ = cmd.Wait() // its exit code says how
	if got := fmt.Sprint(cmd.ProcessState.ExitCode()); got != code {
		return fmt.Errorf("mirror %s ended with exit code %s, want %s", name, got, code)
	}
	return nil
}
