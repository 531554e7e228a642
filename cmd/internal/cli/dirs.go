package cli

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// StateDir returns where program keeps its data when nobody says otherwise:
// systemd's StateDirectory, /var/lib/<program> for root, else the user's state
// directory. It is empty where there is none to be found.
func StateDir(program string, environ []string) string {
	env := IO{Environ: environ}.Getenv
	if dir, _, _ := strings.Cut(env("STATE_DIRECTORY"), ":"); dir != "" {
		return dir
	}
	if runtime.GOOS == "linux" && os.Geteuid() == 0 {
		return filepath.Join("/var/lib", program)
	}
	if dir := env("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, program)
	}
	switch home := env("HOME"); {
	case runtime.GOOS == "windows" && env("LOCALAPPDATA") != "":
		return filepath.Join(env("LOCALAPPDATA"), program)
	case runtime.GOOS == "darwin" && home != "":
		return filepath.Join(home, "Library", "Application Support", program)
	case home != "":
		return filepath.Join(home, ".local", "state", program)
	}
	return ""
}
