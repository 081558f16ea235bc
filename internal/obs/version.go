package obs

import "runtime/debug"

// version is set by the linker: -X ...internal/obs.version=v1.2.3.
var version string

// Version returns the version of this program: what the build said, else what
// the go command noted (of a program installed by `go install`), else "devel".
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}
