// Package cli is what the programs of pairsync have in common on the command
// line: parsing, exit codes, signals, tables and JSON, logging.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// The exit codes of the contract (section 6).
const (
	OK          = 0
	Failed      = 1
	Usage       = 2 // wrong usage or configuration
	Unreachable = 3
)

// IO is where a command reads and writes, and its environment.
type IO struct {
	Out, Err io.Writer
	Environ  []string
}

// Exit is an error with its exit code.
type Exit struct {
	Err  error
	Code int
}

// Error returns the error's text.
func (e *Exit) Error() string { return e.Err.Error() }

// Unwrap returns the error.
func (e *Exit) Unwrap() error { return e.Err }

// UsageError says that what was typed or configured cannot be.
func UsageError(err error) error {
	if err == nil {
		return nil
	}
	return &Exit{err, Usage}
}

// helpShown is what kong's exit becomes: help was printed, nothing is to run.
type helpShown int

// Main parses args into grammar and calls the Run method of the command that
// was named, with a context that ends at SIGINT or SIGTERM (a second one kills
// the process), with std, and with bind. It returns the process's exit code;
// code gives the one of an error that is not an *Exit.
func Main(grammar any, description string, args []string, std IO, code func(error) int, bind ...any) (exit int) {
	defer func() {
		switch v := recover().(type) {
		case nil:
		case helpShown:
			exit = int(v)
		default:
			panic(v)
		}
	}()
	parser, err := kong.New(grammar,
		kong.Description(description), kong.Writers(std.Out, std.Err),
		kong.Exit(func(code int) { panic(helpShown(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, FlagsLast: true}))
	if err != nil {
		panic(err) // the grammar is wrong, whatever was typed
	}
	command, err := parser.Parse(args)
	if err != nil {
		return report(parser.Model.Name, std, err, func(error) int { return Usage })
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	command.BindTo(ctx, (*context.Context)(nil))
	command.Bind(std)
	command.Bind(bind...)
	return report(parser.Model.Name, std, command.Run(), code)
}

func report(program string, std IO, err error, code func(error) int) int {
	if err == nil {
		return OK
	}
	fmt.Fprintf(std.Err, "%s: %v\n", program, err)
	if parse := (*kong.ParseError)(nil); errors.As(err, &parse) {
		fmt.Fprintf(std.Err, "Run \"%s --help\" to see what there is.\n", program)
	}
	if e := (*Exit)(nil); errors.As(err, &e) {
		return e.Code
	}
	return code(err)
}

// Getenv returns a variable of the environment, empty where it is not set.
func (o IO) Getenv(name string) string {
	for _, v := range o.Environ {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value
		}
	}
	return ""
}
