package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/rookery-mail/rookery/adapter/mupdate"
	"github.com/rookery-mail/rookery/directory"
	"github.com/rookery-mail/rookery/internal/mtls"
)

func (a *app) mupdateCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mupdate",
		Short: "logins for Cyrus",
		Long: `Cyrus backends and frontends log in to --listen-mupdate of rookeryd and rookery-gateway by
name and password, of which --mupdate-users keeps what tells a right one from a wrong
one, and not the password.`,
		Example: `  rookeryctl mupdate passwd be1 --server be1.example.org --file /etc/rookery/mupdate-users`,
		Args:    mustNameArgs,
		RunE:    mustName,
	}
	cmd.AddCommand(a.mupdatePasswdCmd())
	return cmd
}

// madeLogin is a login that was made, in JSON.
type madeLogin struct {
	Login  string                `json:"login"`
	Server directory.BackendName `json:"server,omitempty"`
	File   string                `json:"file,omitempty"`
	Line   string                `json:"line"`
}

func (a *app) mupdatePasswdCmd() *cobra.Command {
	var server, cyrus, file string
	cmd := &cobra.Command{
		Use:   "passwd NAME [--server BACKEND] [--cyrus RELEASE] [--file FILE]",
		Short: "make a login for Cyrus, or change its password",
		Long: `Makes the line of a users file for the login NAME: the mupdate_authname of an imapd.conf.
The password, its mupdate_password, is asked for, or read from the standard input, where
it is the first line. The line is printed, or with --file put into that file in the place
of the one of that name. No node is asked; nodes that use the file see the change
within a second.

With --server the login is bound to that backend: it speaks for it alone, and a DELETE,
which names no server, is known to be its own. Give every backend a login of its own, and
frontends one that is bound to nobody.

--cyrus is the release that the client runs. Before 3.6 lists are in another order, and
some releases read only one form of literals; without it the listener's settings count.`,
		Example: `  rookeryctl mupdate passwd be1 --server be1.example.org --file /etc/rookery/mupdate-users
  rookeryctl mupdate passwd be2 --server be2.example.org --cyrus 3.4 < be2.secret
  rookeryctl mupdate passwd frontends --file /etc/rookery/mupdate-users`,
		Args:              exactly("NAME"),
		ValidArgsFunction: none,
	}
	cmd.Flags().StringVar(&server, "server", "", "bind the login to this `backend`")
	cmd.Flags().StringVar(&cyrus, "cyrus", "", "the client's `release` of Cyrus, such as 3.4")
	cmd.Flags().StringVar(&file, "file", "", "put the line into this users `file`; made if missing")
	complete(cmd, "server", a.backendNames())
	cmd.RunE = a.do(func(_ context.Context, args []string) error {
		l := mupdate.Login{Name: args[0]}
		if err := mupdate.CheckLogin(l.Name); err != nil {
			return usagef("%s", strings.TrimPrefix(err.Error(), "mupdate: "))
		}
		if cmd.Flags().Changed("server") {
			b, err := directory.ParseBackend(server)
			if err != nil {
				return usagef("--server: %s", strings.TrimPrefix(err.Error(), "directory: "))
			}
			l.Server = b
		}
		if cmd.Flags().Changed("cyrus") {
			order, literals, err := mupdate.CyrusRelease(cyrus)
			if err != nil {
				return usagef("--cyrus: %s", strings.TrimPrefix(err.Error(), "mupdate: "))
			}
			l.Order, l.Literals = &order, &literals
		}
		var err error
		if l.Password, err = a.askPassword("password of " + l.Name); err != nil {
			return err
		}
		line, err := l.Line()
		if err != nil {
			return refusedf("%s", strings.TrimPrefix(err.Error(), "mupdate: "))
		}
		if file != "" {
			if err := putLogin(file, l.Name, line); err != nil {
				return refusedf("%s", strings.TrimPrefix(err.Error(), "mtls: "))
			}
		}
		if a.format == formatJSON {
			return a.document(madeLogin{l.Name, l.Server, file, line})
		}
		if file == "" {
			a.printf("%s\n", line)
			return nil
		}
		a.printf("%s is in %s\n", l.Name, file)
		return nil
	})
	return cmd
}

// askPassword reads a new password: from a terminal twice and unseen, else the first line
// of the standard input.
func (a *app) askPassword(what string) (string, error) {
	password, typed, err := a.readPassword(what)
	if err != nil || !typed {
		return password, err
	}
	again, _, err := a.readPassword("again")
	if err == nil && again != password {
		return "", refusedf("that was not the same password twice")
	}
	return password, err
}

// readPassword reads a password: from a terminal, where it is typed unseen, else the
// first line of the standard input.
func (a *app) readPassword(what string) (password string, typed bool, err error) {
	f, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		line, err := bufio.NewReader(a.stdin).ReadString('\n')
		if err != nil && err != io.EOF {
			return "", false, fmt.Errorf("reading the password: %w", err)
		}
		return strings.TrimRight(line, "\r\n"), false, nil
	}
	fmt.Fprint(a.stderr, what+": ")
	b, err := term.ReadPassword(int(f.Fd()))
	fmt.Fprintln(a.stderr)
	if err != nil {
		return "", true, fmt.Errorf("reading the password: %w", err)
	}
	return string(b), true, nil
}

// putLogin puts a line into a users file. The file is whole at every moment, and keeps
// owner and mode: a full disk costs nobody's login.
func putLogin(file, name, line string) error {
	if at, err := filepath.EvalSymlinks(file); err == nil {
		file = at // the link stays one
	}
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	changed, err := mupdate.ReplaceLogin(old, name, line)
	if err != nil {
		return fmt.Errorf("%s: %s; nodes refuse the file, and nothing was changed", file, strings.TrimPrefix(err.Error(), "mupdate: "))
	}
	return mtls.Replace(file, changed)
}
