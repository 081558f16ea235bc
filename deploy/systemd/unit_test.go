package systemd

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// The directives that make the unit what it is. That systemd accepts it is for
// `make check-systemd` to see, where systemd is installed.
func TestUnit(t *testing.T) {
	unit := parseUnit(t, "rookeryd.service")
	for _, test := range []struct {
		section, key string
		want         []string // every assignment, in order
	}{
		{"Unit", "ConditionPathExists", []string{"/etc/rookery/rookeryd.conf"}},
		{"Unit", "After", []string{"network-online.target"}},
		{"Unit", "Wants", []string{"network-online.target"}},
		{"Install", "WantedBy", []string{"multi-user.target"}},

		// A node that says when it serves and is restarted when it dies or hangs.
		{"Service", "Type", []string{"notify"}},
		{"Service", "NotifyAccess", []string{"main"}},
		{"Service", "ExecStart", []string{"/usr/bin/rookeryd --config /etc/rookery/rookeryd.conf"}},
		{"Service", "WatchdogSec", []string{"30"}},
		{"Service", "Restart", []string{"on-failure"}},
		{"Service", "KillSignal", []string{"SIGTERM"}},
		{"Service", "TimeoutStopSec", []string{"30"}},
		{"Service", "LimitNOFILE", []string{"65536"}},
		{"Service", "User", []string{"rookery"}},
		{"Service", "Group", []string{"rookery"}},
		{"Service", "StateDirectory", []string{"rookery"}},
		{"Service", "StateDirectoryMode", []string{"0700"}},
		{"Service", "RuntimeDirectory", []string{"rookery"}},

		// What a stolen process could do with the machine: next to nothing.
		{"Service", "NoNewPrivileges", []string{"yes"}},
		{"Service", "CapabilityBoundingSet", []string{""}},
		{"Service", "AmbientCapabilities", []string{""}},
		{"Service", "ProtectSystem", []string{"strict"}},
		{"Service", "ProtectHome", []string{"yes"}},
		{"Service", "ProtectClock", []string{"yes"}},
		{"Service", "ProtectControlGroups", []string{"yes"}},
		{"Service", "ProtectHostname", []string{"yes"}},
		{"Service", "ProtectKernelLogs", []string{"yes"}},
		{"Service", "ProtectKernelModules", []string{"yes"}},
		{"Service", "ProtectKernelTunables", []string{"yes"}},
		{"Service", "ProtectProc", []string{"invisible"}},
		{"Service", "PrivateTmp", []string{"yes"}},
		{"Service", "PrivateDevices", []string{"yes"}},
		{"Service", "PrivateUsers", []string{"yes"}},
		{"Service", "RestrictAddressFamilies", []string{"AF_UNIX AF_INET AF_INET6"}},
		{"Service", "RestrictNamespaces", []string{"yes"}},
		{"Service", "RestrictRealtime", []string{"yes"}},
		{"Service", "RestrictSUIDSGID", []string{"yes"}},
		{"Service", "LockPersonality", []string{"yes"}},
		{"Service", "MemoryDenyWriteExecute", []string{"yes"}},
		{"Service", "SystemCallArchitectures", []string{"native"}},
		{"Service", "SystemCallFilter", []string{"@system-service", "~@privileged @resources"}},
	} {
		if got := unit[test.section][test.key]; !slices.Equal(got, test.want) {
			t.Errorf("[%s] %s: got %q, want %q", test.section, test.key, got, test.want)
		}
	}
	for section, keys := range unit {
		for key, values := range keys {
			if len(values) > 1 && key != "SystemCallFilter" {
				t.Errorf("[%s] %s is assigned %d times", section, key, len(values))
			}
			switch key {
			case "ReadWritePaths", "ExecStartPre", "PermissionsStartOnly":
				t.Errorf("[%s] %s: opens what the rest closes", section, key)
			}
		}
	}
}

// The account that the unit runs as is the one that gets created, and the
// example settings keep their state where the unit lets them.
func TestUnitFitsItsFiles(t *testing.T) {
	service := parseUnit(t, "rookeryd.service")["Service"]

	var users []string
	for _, line := range readLines(t, "rookeryd.sysusers.conf") {
		if fields := strings.Fields(line); fields[0] == "u" {
			users = append(users, fields[1])
		}
	}
	if !slices.Equal(users, service["User"]) {
		t.Errorf("sysusers creates %q, the unit runs as %q", users, service["User"])
	}

	settings := map[string]string{}
	for _, line := range readLines(t, "rookeryd.conf") {
		name, value, ok := strings.Cut(line, ": ")
		if _, twice := settings[name]; !ok || twice || value == "" {
			t.Errorf("rookeryd.conf: %q: want `name: value`, each name once", line)
		}
		settings[name] = value
	}
	if want := "/var/lib/" + service["StateDirectory"][0]; settings["data"] != want {
		t.Errorf("rookeryd.conf: got data %q, want %q, the unit's state directory", settings["data"], want)
	}
}

// parseUnit returns the assignments of a unit file by section and key.
func parseUnit(t *testing.T, file string) map[string]map[string][]string {
	t.Helper()
	unit := map[string]map[string][]string{}
	var section string
	for _, line := range readLines(t, file) {
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]")
			if unit[section] != nil {
				t.Errorf("%s: two sections [%s]", file, section)
			}
			unit[section] = map[string][]string{}
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok || section == "" {
			t.Fatalf("%s: %q: want an assignment in a section", file, line)
		}
		unit[section][key] = append(unit[section][key], value)
	}
	return unit
}

// readLines returns the lines of file that are neither empty nor comments.
func readLines(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines
}
