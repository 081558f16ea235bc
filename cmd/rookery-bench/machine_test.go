package main

import "testing"

func TestMountOf(t *testing.T) {
	const mounts = `/dev/vda / ext4 rw 0 0
proc /proc proc rw 0 0
tmpfs /tmp tmpfs rw 0 0
/dev/vdb /tmp/disk xfs rw 0 0
none /tmp/disk btrfs rw 0 0
`
	for dir, want := range map[string]string{
		"/": "ext4", "/home/x": "ext4", "/tmp": "tmpfs", "/tmp/a": "tmpfs", "/tmpfoo": "ext4", "/tmp/disk/bench": "btrfs", "/tmp/diskette": "tmpfs",
	} {
		if got := mountOf(dir, mounts); got != want {
			t.Errorf("%s is on %q, want %q", dir, got, want)
		}
	}
}
