// Package version tells which build this is.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version is the release; the build sets it with -ldflags "-X".
var Version = "0.1.0-dev"

// String returns the release, the commit where the build knows it, and the Go
// version and platform, on one line.
func String() string {
	commit := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				commit = " " + s.Value[:12]
			}
		}
	}
	return fmt.Sprintf("%s%s (%s %s/%s)", Version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
