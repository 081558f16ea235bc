package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// machineInfo says what the figures were measured on.
type machineInfo struct {
	CPU    string
	CPUs   int
	Memory string
	Kernel string
	Go     string
	Dir    string // where the data were
	Disk   string // the file system there: on tmpfs a sync costs nothing
	Load   string // how many wanted a CPU in the minute before the run
}

// thisMachine asks the kernel; what it does not tell stays empty.
func thisMachine(dir string) machineInfo {
	return machineInfo{
		CPU:    field("/proc/cpuinfo", "model name"),
		CPUs:   runtime.NumCPU(),
		Memory: field("/proc/meminfo", "MemTotal"),
		Kernel: firstLine("/proc/sys/kernel/osrelease"),
		Go:     runtime.Version(),
		Dir:    dir,
		Disk:   fileSystem(dir),
		Load:   load(),
	}
}

// field returns what stands behind "name:" in a file of /proc.
func field(file, name string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func firstLine(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// load returns the load average of the last minute. Well above zero before a
// run means that somebody else is busy, and the figures are of two programs.
func load() string {
	minute, _, _ := strings.Cut(firstLine("/proc/loadavg"), " ")
	return minute
}

// fileSystem returns the type of the file system that holds dir, as mounted.
func fileSystem(dir string) string {
	at, err := filepath.Abs(dir)
	if err != nil {
		return ""
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return ""
	}
	return mountOf(at, string(mounts))
}

// mountOf looks dir up in the text of /proc/mounts: the last of the longest
// mount points above it counts.
func mountOf(dir, mounts string) string {
	longest, kind := 0, ""
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		point := strings.TrimSuffix(fields[1], "/")
		if len(point) >= longest && (dir == point || strings.HasPrefix(dir, point+"/")) {
			longest, kind = len(point), fields[2]
		}
	}
	return kind
}
