package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/internal/mtls"
	"github.com/rookery-mail/rookery/internal/obs"
)

// app is one run of the program: what the command line says, and where its
// input and output are.
type app struct {
	stdin  io.Reader
	stdout *bufio.Writer
	stderr io.Writer

	endpoints string
	tls       mtls.Paths
	timeout   time.Duration
	format    string
	stale     bool

	started bool // the command line made sense
	client  *client.Client
	reach   *reach
}

// run carries out one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) int {
	a := &app{stdin: stdin, stdout: bufio.NewWriterSize(stdout, 64<<10), stderr: stderr}
	root := a.root(getenv)
	root.SetArgs(args)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.reach = newReach(cancel)
	cmd, err := root.ExecuteContextC(ctx)
	if a.client != nil {
		a.client.Close()
	}
	if flushed := a.stdout.Flush(); err == nil && flushed != nil {
		err = fmt.Errorf("writing the output: %w", flushed)
	}
	line, code := a.present(ctx, err)
	if code == exitUsage {
		line += fmt.Sprintf(" (see `%s --help`)", cmd.CommandPath())
	}
	if line != "" {
		fmt.Fprintln(stderr, "rookeryctl: "+line)
	}
	return code
}

const defaultEndpoint = "127.0.0.1:7905"

func (a *app) root(getenv func(string) string) *cobra.Command {
	endpoints := defaultEndpoint
	if s := getenv("ROOKERY_ENDPOINTS"); s != "" {
		endpoints = s
	}
	root := &cobra.Command{
		Use:   "rookeryctl",
		Short: "see and steer a Rookery directory of mailboxes",
		Long: `rookeryctl sees and steers a Rookery cluster, the directory of where mailboxes
live: it imports and exports mailbox lists, answers where a mailbox is and why,
lists as an IMAP server would, and does what an operator does.

Mailbox names are canonical, as Cyrus writes them internally ([domain!]user.alice.Sent,
a dot inside a level as ^), unless a command says "client form". A user is id[@domain].

Exit codes: 0 done or answered; 1 refused, or something is degraded; 2 the command
line makes no sense; 3 the directory could not be asked, so nothing is known.

Nodes with certificates take mutual TLS only: --tls-cert, --tls-key and --tls-ca say who
asks. On the machine of a node root needs none, by --endpoints unix:/path/rookery.sock.

Environment: ROOKERY_ENDPOINTS, the nodes to ask, as --endpoints; ROOKERY_TLS_CERT,
ROOKERY_TLS_KEY, ROOKERY_TLS_CA and ROOKERY_CERT_MAP, as the flags of these names.`,
		Example: `  rookeryctl import cyrus --server be1.example.org be1.json
  rookeryctl where user.alice --why
  rookeryctl list --user alice -o imap '*'
  rookeryctl --endpoints 10.0.0.1:7905,10.0.0.2:7905 status`,
		Version:           obs.Version(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		PersistentPreRunE: a.checkFlags,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetVersionTemplate("rookeryctl {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%v", err) })
	flags := root.PersistentFlags()
	flags.StringVar(&a.endpoints, "endpoints", endpoints, "ask these nodes, `host:port,...`; all of the cluster, or some; unix:/path is a node's own socket")
	a.identityFlags(root, getenv)
	flags.DurationVar(&a.timeout, "timeout", client.DefaultTimeout, "how long to wait for an answer, with all retries; 0 for ever")
	flags.StringVarP(&a.format, "output", "o", formatTable, "print as `table|json`")
	flags.BoolVar(&a.stale, "stale", false, "take what a node has, also without a majority and however old")
	fixed(root, "output", formatTable, formatJSON)

	const (
		asking    = "asking"
		stating   = "stating"
		operating = "operating"
		other     = "other"
	)
	root.AddGroup(
		&cobra.Group{ID: asking, Title: "Asking:"},
		&cobra.Group{ID: stating, Title: "Stating what backends hold:"},
		&cobra.Group{ID: operating, Title: "Operating:"},
		&cobra.Group{ID: other, Title: "Other:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	add(asking, a.whereCmd(), a.listCmd(), a.rightsCmd(), a.findCmd(), a.subscriptionsCmd(), a.watchCmd(), a.exportCmd())
	add(stating, a.importCmd(), a.mirrorCmd(getenv), a.resyncCmd(), a.assertCmd(), a.retractCmd(), a.reserveCmd(), a.releaseCmd(), a.deactivateCmd(), a.renameCmd(), a.subscribeCmd(), a.unsubscribeCmd())
	add(operating, a.statusCmd(), a.checkCmd(), a.memberCmd(), a.moveLeaderCmd(), a.clusterVersionCmd(), a.compactCmd(), a.backendsCmd(), a.groupsCmd(), a.switchoverCmd(), a.holdCmd(), a.alarmCmd(), a.withdrawalCmd(), a.forksCmd(), a.forkCmd(), a.movesCmd(), a.settingsCmd(), a.snapshotCmd(), a.recoverCmd())
	add(other, a.certCmd(), a.mupdateCmd(), a.versionCmd())
	root.SetHelpCommandGroupID(other)
	root.SetCompletionCommandGroupID(other)
	root.AddCommand(a.manCmd(), outputTopic())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Short = "explain a command, or what all of them print (output)"
			cmd.Run, cmd.RunE = nil, explainCommand
		case "completion":
			cmd.Short = "print what a shell needs to complete commands, backends, groups and nodes"
		}
	}
	plainUsage(root)
	return root
}

// explainCommand is the help command; cobra's own is content with a topic that
// does not exist.
func explainCommand(cmd *cobra.Command, args []string) error {
	about, rest, err := cmd.Root().Find(args)
	if err != nil || len(rest) > 0 {
		return usagef("help %s: there is no such command", strings.Join(args, " "))
	}
	return about.Help()
}

// path is a command as people call it, without the program.
func path(cmd *cobra.Command) string {
	_, path, ok := strings.Cut(cmd.CommandPath(), " ")
	if !ok {
		return cmd.CommandPath()
	}
	return path
}

// plainUsage takes the words "[flags]" away: the usage lines name what matters.
func plainUsage(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = true
	for _, sub := range cmd.Commands() {
		plainUsage(sub)
	}
}

// checkFlags checks what cobra does not.
func (a *app) checkFlags(cmd *cobra.Command, _ []string) error {
	allowed := []string{formatTable, formatJSON}
	if extra := cmd.Annotations[annotationFormats]; extra != "" {
		allowed = append(allowed, strings.Split(extra, ",")...)
	}
	if !slices.Contains(allowed, a.format) {
		return usagef("--output %s: %s prints %s", a.format, path(cmd), oneOf(allowed))
	}
	if a.timeout < 0 {
		return usagef("--timeout %v: it cannot be negative", a.timeout)
	}
	return nil
}

// annotationFormats names what a command prints besides table and json.
const annotationFormats = "formats"

// do makes a command's RunE: from here on an error is no matter of usage,
// unless it says so.
func (a *app) do(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		a.started = true
		return f(cmd.Context(), args)
	}
}

// mustName is the RunE of a command that only stands above others.
func mustName(cmd *cobra.Command, args []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	if len(args) > 0 {
		return usagef("%s %s: there is no such command; it is one of %s", path(cmd), args[0], strings.Join(names, ", "))
	}
	return usagef("%s what? One of %s", path(cmd), strings.Join(names, ", "))
}

// nodes splits --endpoints.
func (a *app) nodes() ([]string, error) {
	nodes, err := client.ParseEndpoints(a.endpoints)
	if err != nil {
		return nil, usagef("--endpoints %s: %s", a.endpoints, strings.TrimPrefix(err.Error(), "client: "))
	}
	return nodes, nil
}

// connect returns the client for the cluster. It does not connect: the first
// call does.
func (a *app) connect() (*client.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	nodes, err := a.nodes()
	if err != nil {
		return nil, err
	}
	a.reach.nodes = len(nodes)
	a.client, err = a.dial(nodes, a.reach.observe)
	return a.client, err
}

// dial makes a client of some nodes.
func (a *app) dial(nodes []string, observe func(client.Attempt)) (*client.Client, error) {
	secured, err := a.secured()
	if err != nil {
		return nil, err
	}
	return client.Dial(nodes, secured, client.WithTimeout(a.timeout), client.WithObserver(observe))
}

// fresh says how fresh the answers to reads must be.
func (a *app) fresh(more ...client.ReadOption) []client.ReadOption {
	if a.stale {
		more = append(more, client.Stale(0))
	}
	return more
}

// note tells a person something beside the answer.
func (a *app) note(format string, args ...any) {
	fmt.Fprintf(a.stderr, "rookeryctl: "+format+"\n", args...)
}

func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.stdout, format, args...) }

func oneOf(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}
