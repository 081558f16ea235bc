package main

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"syscall"
	"time"
)

// On a machine with other work, calls a second tell of that work too, while the
// processor time that a call takes hardly changes. So both are measured.

// ticksPerSecond is the unit of times in /proc, the same on every Linux that Go
// runs on.
const ticksPerSecond = 100

// ownCPU returns the processor time that this process has used.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// cpu returns the processor time that the process has used; 0 if the system does
// not tell, and of no process.
func (p *process) cpu() time.Duration {
	if p == nil {
		return 0
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/stat")
	if err != nil {
		return 0
	}
	used, err := parseCPU(text)
	if err != nil {
		return 0
	}
	return used
}

// parseCPU reads utime and stime, the 14th and 15th field of /proc/PID/stat. The
// second is the program's name in brackets, which may hold anything.
func parseCPU(stat []byte) (time.Duration, error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat has too few fields")
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

// A cpuMeter measures what this process and a server's use meanwhile.
type cpuMeter struct {
	server      *process
	own, others time.Duration
}

func startCPU(server *process) cpuMeter {
	return cpuMeter{server: server, own: ownCPU(), others: server.cpu()}
}

// stop notes in r what was used.
func (m cpuMeter) stop(r *run) {
	r.callerCPU = ownCPU() - m.own
	r.serverCPU = m.server.cpu() - m.others
}
