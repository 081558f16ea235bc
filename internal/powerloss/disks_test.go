//go:build peers

package powerloss

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// disks is a powerfs: the volumes of one lane. Its methods are for one
// goroutine.
type disks struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan answer
	cuts    chan string // why power was cut by a rule; nobody need read it
	points  []string
}

// request, rule and answer are what powerfs takes and gives; see there.
type request struct {
	Do      string   `json:"do"`
	Volumes []string `json:"volumes"`
	Point   string   `json:"point,omitempty"`
	Seed    uint64   `json:"seed,omitempty"`
	Order   string   `json:"order,omitempty"`
	Rule    *rule    `json:"rule,omitempty"`
}

type rule struct {
	Op    string        `json:"op"`
	Path  string        `json:"path"`
	N     int           `json:"n"`
	Times int           `json:"times"`
	Cut   []string      `json:"cut,omitempty"`
	After bool          `json:"after,omitempty"`
	Errno syscall.Errno `json:"errno,omitempty"`
	Delay int64         `json:"delay,omitempty"`
}

func (r rule) String() string {
	when := "before"
	if r.After {
		when = "after"
	}
	path := r.Path
	if path == "" {
		path = "any file"
	}
	what := fmt.Sprintf("%s %s of %s, number %d", when, r.Op, path, r.N)
	switch {
	case r.Errno != 0:
		return fmt.Sprintf("%v at %s of %s, number %d", r.Errno, r.Op, path, r.N)
	case r.Delay != 0:
		return fmt.Sprintf("slow %s of %s, number %d", r.Op, path, r.N)
	}
	return what
}

type answer struct {
	Error string `json:"error"`
	Cut   string `json:"cut"`
	Power *lost  `json:"power"`
}

// lost is what was not durable when the power was cut.
type lost struct {
	Files   int   `json:"files"`
	Changes int   `json:"changes"`
	Moves   int   `json:"moves"`
	Bytes   int64 `json:"bytes"`
}

func startDisks(program string) (*disks, error) {
	d := &disks{cmd: exec.Command(program), answers: make(chan answer, 1), cuts: make(chan string, 64)}
	d.cmd.Stderr = os.Stderr
	var err error
	if d.in, err = d.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start powerfs: %w", err)
	}
	go d.listen(out)
	return d, nil
}

func (d *disks) listen(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var a answer
		switch err := json.Unmarshal(lines.Bytes(), &a); {
		case err != nil:
			d.answers <- answer{Error: fmt.Sprintf("%s: %v", lines.Text(), err)}
		case a.Cut != "":
			select {
			case d.cuts <- a.Cut:
			default:
			}
		default:
			d.answers <- a
		}
	}
	close(d.answers)
}

func (d *disks) ask(q request) (answer, error) {
	line, err := json.Marshal(q)
	if err != nil {
		return answer{}, err
	}
	if _, err := d.in.Write(append(line, '\n')); err != nil {
		return answer{}, &trouble{fmt.Errorf("powerfs: %s: %w", q.Do, err)}
	}
	a, ok := <-d.answers
	switch {
	case !ok:
		return a, &trouble{fmt.Errorf("powerfs: %s: it has ended", q.Do)}
	case a.Error != "":
		return a, &trouble{fmt.Errorf("powerfs: %s: %s", q.Do, a.Error)}
	}
	return a, nil
}

// add makes an empty volume and mounts it at a new directory.
func (d *disks) add(name, point string) error {
	if err := os.MkdirAll(point, 0o700); err != nil {
		return err
	}
	d.points = append(d.points, point)
	_, err := d.ask(request{Do: "add", Volumes: []string{name}, Point: point})
	return err
}

// cut ends the power of volumes in one moment.
func (d *disks) cut(volumes ...string) error {
	_, err := d.ask(request{Do: "cut", Volumes: volumes})
	return err
}

// restore mounts what has survived the cut.
func (d *disks) restore(volume string, seed uint64, order string) (lost, error) {
	a, err := d.ask(request{Do: "restore", Volumes: []string{volume}, Seed: seed, Order: order})
	if err != nil {
		return lost{}, err
	}
	return *a.Power, nil
}

// arm adds a rule to a volume.
func (d *disks) arm(volume string, r rule) error {
	_, err := d.ask(request{Do: "rule", Volumes: []string{volume}, Rule: &r})
	return err
}

// forget drops the rules of a volume.
func (d *disks) forget(volume string) error {
	_, err := d.ask(request{Do: "rule", Volumes: []string{volume}})
	return err
}

func (d *disks) remove(volume string) error {
	_, err := d.ask(request{Do: "remove", Volumes: []string{volume}})
	return err
}

// forgetCuts empties cuts of what was said before.
func (d *disks) forgetCuts() {
	for {
		select {
		case <-d.cuts:
		default:
			return
		}
	}
}

// close unmounts everything, whatever has become of powerfs.
func (d *disks) close() error {
	err := errors.Join(d.in.Close(), d.cmd.Wait())
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, p := range d.points {
		if mounted(mounts, p) {
			err = errors.Join(err, syscall.Unmount(p, syscall.MNT_DETACH))
		}
	}
	return err
}

func mounted(mounts []byte, point string) bool {
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == filepath.Clean(point) {
			return true
		}
	}
	return false
}

// prerequisites says what is missing for any of this.
func prerequisites(powerfs string) error {
	if os.Geteuid() != 0 {
		return errors.New("powerloss mounts file systems: it must be run by root")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("powerloss needs FUSE: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if _, err := os.Stat(powerfs); err != nil {
		return fmt.Errorf("powerloss needs powerfs, which `make bin/tools/powerfs` builds: %w", err)
	}
	return nil
}
