package main

import (
	"os"
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
