package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

func (a *app) backendsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backends [NAME]",
		Short: "show the backends, and change them",
		Long: `Shows the IMAP servers that store mail, or one of them: state, replica group, how many
mailboxes they stated (FACTS) and how many of these count inside their home (COUNTED),
whether the withdrawal guard holds any, and how their list was last known whole.`,
		Example: `  rookeryctl backends
  rookeryctl backends be1.example.org -o json`,
		Args:              atMost("NAME"),
		ValidArgsFunction: firstOnly(a.backendNames()),
	}
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		var only directory.BackendName
		if len(args) == 1 {
			var err error
			if only, err = directory.ParseBackend(args[0]); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		backends, err := c.ListBackends(ctx, only, a.fresh()...)
		if err != nil {
			return err
		}
		return a.tellBackends(backends)
	})
	cmd.AddCommand(a.admitCmd(), a.confirmCmd(), a.setBackendCmd(), a.renameBackendCmd())
	return cmd
}

type backendJSON struct {
	Name           directory.BackendName `json:"name"`
	ID             directory.ServerID    `json:"id"`
	Group          directory.GroupName   `json:"group"`
	Primary        bool                  `json:"primary"`
	Addresses      []addressJSON         `json:"addresses"`
	Weight         uint32                `json:"weight"`
	Admitted       bool                  `json:"admitted"`
	State          string                `json:"state"`
	StateAgeMS     int64                 `json:"state_age_ms"`
	DrainApproved  bool                  `json:"drain_approved"`
	Confirmed      bool                  `json:"confirmed"`
	ConfirmedBy    string                `json:"confirmed_by"`
	ConfirmedAgeMS int64                 `json:"confirmed_age_ms"`
	Facts          uint64                `json:"facts"`
	Counted        uint64                `json:"counted"`
	Held           bool                  `json:"held"`
}

func (a *app) tellBackends(backends []client.Backend) error {
	if a.format == formatJSON {
		out := make([]backendJSON, len(backends))
		for i, b := range backends {
			out[i] = backendJSON{
				b.Name, b.ID, b.Group, b.Primary, addressesOf(b.Addresses), b.Weight, b.Admitted, b.State.String(), millis(b.StateAge),
				b.DrainApproved, b.Confirmed, b.ConfirmedBy.String(), millis(b.ConfirmedAge), b.Facts, b.Counted, b.Held,
			}
		}
		return a.document(struct {
			Backends []backendJSON `json:"backends"`
		}{out})
	}
	t := a.table("BACKEND", "STATE", ">SINCE", "GROUP", "ROLE", "ADMITTED", ">FACTS", ">COUNTED", "HELD", ">WEIGHT", "CONFIRMED", "ADDRESSES")
	for _, b := range backends {
		role := "member"
		if b.Primary {
			role = "primary"
		}
		t.row(b.Name, b.State, age(b.StateAge), b.Group, role, yesNo(b.Admitted), b.Facts, b.Counted, yesNo(b.Held), b.Weight, confirmation(b), addressWords(b.Addresses))
	}
	return t.end("no backend is known yet")
}

// confirmation says how a backend's list was last known whole.
func confirmation(b client.Backend) string {
	switch {
	case b.Confirmed:
		return fmt.Sprintf("by %s %s ago", b.ConfirmedBy, age(b.ConfirmedAge))
	case b.ConfirmedBy != directory.ByNobody:
		return "no (by " + b.ConfirmedBy.String() + " before the restore)"
	}
	return "no"
}

func tlsWord(m directory.TLSMode) string {
	switch m {
	case directory.TLSStart:
		return "start"
	case directory.TLSImplicit:
		return "implicit"
	}
	return "none"
}

// addressWords writes addresses as --address takes them.
func addressWords(addresses []directory.Address) string {
	words := make([]string, len(addresses))
	for i, ad := range addresses {
		host := ad.IP
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		words[i] = fmt.Sprintf("%s=%s:%d", ad.Service, host, ad.Port)
		if ad.TLS != directory.TLSNone {
			words[i] += "/" + tlsWord(ad.TLS)
		}
	}
	return strings.Join(words, " ")
}

// parseAddress reads SERVICE=IP:PORT[/start|/implicit].
func parseAddress(s string) (directory.Address, error) {
	wrong := func(why string) (directory.Address, error) {
		return directory.Address{}, usagef("--address %s: %s; it is SERVICE=IP:PORT, with /start or /implicit behind it for TLS", s, why)
	}
	service, rest, ok := strings.Cut(s, "=")
	if !ok {
		return wrong("there is no =")
	}
	ad := directory.Address{Service: directory.Service(service)}
	switch ad.Service {
	case directory.ServiceIMAP, directory.ServiceLMTP, directory.ServicePOP3, directory.ServiceSieve, directory.ServiceSMTP:
	default:
		return wrong("the service is imap, lmtp, pop3, sieve or smtp")
	}
	host, mode, tls := strings.Cut(rest, "/")
	switch {
	case !tls || mode == "none":
	case mode == "start":
		ad.TLS = directory.TLSStart
	case mode == "implicit":
		ad.TLS = directory.TLSImplicit
	default:
		return wrong("TLS is start or implicit")
	}
	at, err := netip.ParseAddrPort(host)
	if err != nil || at.Port() == 0 {
		return wrong("the address is a numeric IP and a port, not a name")
	}
	ad.IP, ad.Port = at.Addr().String(), at.Port()
	return ad, nil
}

type admissionJSON struct {
	Server      directory.BackendName `json:"server"`
	Facts       uint64                `json:"facts"`
	Overlapping uint64                `json:"overlapping"`
	Overlaps    []overlapJSON         `json:"overlaps"`
	Admitted    bool                  `json:"admitted"`
	Result      *resultJSON           `json:"result,omitempty"`
}

type overlapJSON struct {
	Mailbox  directory.MailboxName `json:"mailbox"`
	Group    directory.GroupName   `json:"group"`
	Server   directory.BackendName `json:"server"`
	SameCopy bool                  `json:"same_copy"`
}

func (a *app) admitCmd() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "admit NAME",
		Short: "let what a backend stated count",
		Long: `Lets the facts of a backend count from now on. First it shows which of its mailboxes have a
home already: each of them would become a fork. If there are any, it asks, or wants --yes.

Where both state the same mailbox id (SAME COPY), they are copies of one mailbox: then the
backend may belong into the home's replica group (` + "`rookeryctl groups set`" + `).`,
		Example: `  rookeryctl backends admit be3.example.org
  rookeryctl backends admit be3.example.org --yes`,
		Args:              exactly("NAME"),
		ValidArgsFunction: firstOnly(a.backendNames()),
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		server, err := directory.ParseBackend(args[0])
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		known, err := c.ListBackends(ctx, server)
		if err != nil {
			return err
		}
		p, err := c.PreviewAdmission(ctx, server, 0)
		if err != nil {
			return err
		}
		out := admissionJSON{Server: server, Facts: p.Facts, Overlapping: p.Overlapping, Overlaps: []overlapJSON{}}
		for _, o := range p.Overlaps {
			out.Overlaps = append(out.Overlaps, overlapJSON{o.Mailbox, o.Group, o.Server, o.SameCopy})
		}
		if a.format != formatJSON {
			if err := a.tellAdmission(server, p); err != nil {
				return err
			}
		}
		pending := !known[0].Admitted && p.Overlapping > 0 && !yes
		if pending && a.confirm("Admit it all the same?") {
			pending = false
		}
		if pending {
			if a.format == formatJSON {
				if err := a.document(out); err != nil {
					return err
				}
			}
			return refusedf("nothing was changed: %s has %s that other groups hold; --yes admits it all the same", server, mailboxCount(p.Overlapping))
		}
		r, err := c.AdmitBackend(ctx, server)
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			out.Admitted, out.Result = true, new(resultOf(r))
			return a.document(out)
		}
		if r.Effect == client.Unchanged {
			a.printf("%s was admitted before (revision %d)\n", server, r.Revision)
			return nil
		}
		a.printf("%s is admitted (revision %d)\n", server, r.Revision)
		return nil
	})
	return cmd
}

func (a *app) tellAdmission(server directory.BackendName, p client.Admission) error {
	a.printf("%s states %s; %d of them have a home elsewhere.\n", server, mailboxCount(p.Facts), p.Overlapping)
	if p.Overlapping == 0 {
		return nil
	}
	t := a.table("MAILBOX", "HOME", "SERVER", "SAME COPY")
	for _, o := range p.Overlaps {
		t.row(o.Mailbox, o.Group, o.Server, yesNo(o.SameCopy))
	}
	if err := t.end(""); err != nil {
		return err
	}
	if more := p.Overlapping - uint64(len(p.Overlaps)); more > 0 {
		a.printf("and %d more\n", more)
	}
	return nil
}

// confirm asks the person at the terminal; false if there is none.
func (a *app) confirm(question string) bool {
	if !isTerminal(a.stdin) || !isTerminal(a.stderr) {
		return false
	}
	a.stdout.Flush()
	fmt.Fprintf(a.stderr, "%s [y/N] ", question)
	line, _ := bufio.NewReader(a.stdin).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true
	}
	return false
}

func (a *app) confirmCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "confirm NAME",
		Short: "say that a backend's list is known whole",
		Long: `Says, on an operator's word, that everything a backend holds has been stated. While there
is a backend of which nobody said so, the directory never answers NOT_FOUND. Say it only of
a backend that you have seen: what it holds and did not state would bounce mail.`,
		Example:           `  rookeryctl backends confirm be3.example.org`,
		Args:              exactly("NAME"),
		ValidArgsFunction: firstOnly(a.backendNames()),
	}
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		server, err := directory.ParseBackend(args[0])
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := c.ConfirmBackend(ctx, server, directory.ByOperator)
		if err != nil {
			return err
		}
		return a.tellResult(r, string(server))
	})
	return cmd
}

// settableStates are those that an operator may set.
var settableStates = []directory.BackendState{
	directory.BackendActive, directory.BackendFull, directory.BackendDraining, directory.BackendDown, directory.BackendLost, directory.BackendRetired,
}

func stateWords() []string {
	var words []string
	for _, s := range settableStates {
		words = append(words, s.String())
	}
	return words
}

func (a *app) setBackendCmd() *cobra.Command {
	var state string
	var weight uint32
	var addresses []string
	var noAddresses, approve, create bool
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "change what operators say of a backend",
		Long: `Changes what is stated and keeps the rest. States: active; full (serves, takes no new
users); draining (as full, and it is being emptied); down (its mailboxes answer BACKEND_DOWN,
LIST is unchanged); lost (its facts are history, never routed, and block no name); retired (it
holds nothing, its name is not used again). full needs cluster version 2.`,
		Example: `  rookeryctl backends set be1.example.org --state draining
  rookeryctl backends set be1.example.org --address imap=10.0.0.11:143/start --address lmtp=10.0.0.11:24
  rookeryctl backends set be4.example.org --create --weight 50`,
		Args:              exactly("NAME"),
		ValidArgsFunction: firstOnly(a.backendNames()),
	}
	f := cmd.Flags()
	f.StringVar(&state, "state", "", "its `state`: "+strings.Join(stateWords(), ", "))
	f.Uint32Var(&weight, "weight", 0, "its `share` of new users; 0 takes none")
	f.StringArrayVar(&addresses, "address", nil, "where it answers a service: `SERVICE=IP:PORT[/start|/implicit]`; may be repeated, all of them replace those there")
	f.BoolVar(&noAddresses, "no-addresses", false, "forget its addresses")
	f.BoolVar(&approve, "approve-drain", false, "what it withdraws while draining is believed; --approve-drain=false ends that")
	f.BoolVar(&create, "create", false, "make it, admitted, if it is not known yet")
	cmd.MarkFlagsMutuallyExclusive("address", "no-addresses")
	fixed(cmd, "state", stateWords()...)
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		server, err := directory.ParseBackend(args[0])
		if err != nil {
			return err
		}
		change := client.BackendChange{Create: create}
		if f.Changed("state") {
			for _, s := range settableStates {
				if s.String() == state {
					change.State = new(s)
				}
			}
			if change.State == nil {
				return usagef("--state %s: it is one of %s", state, strings.Join(stateWords(), ", "))
			}
		}
		if f.Changed("weight") {
			change.Weight = &weight
		}
		if f.Changed("approve-drain") {
			change.DrainApproved = &approve
		}
		if len(addresses) > 0 || noAddresses {
			all := []directory.Address{}
			for _, s := range addresses {
				ad, err := parseAddress(s)
				if err != nil {
					return err
				}
				all = append(all, ad)
			}
			change.Addresses = &all
		}
		if change == (client.BackendChange{}) {
			return usagef("%s: nothing to change is stated", path(cmd))
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := c.SetBackend(ctx, server, change)
		if err != nil {
			return err
		}
		return a.tellResult(r, string(server))
	})
	return cmd
}

func (a *app) renameBackendCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "rename OLD NEW",
		Short:             "give a backend another name; its facts stay its own",
		Long:              `Gives a backend another name. Its facts stay its own, and nothing is asserted again.`,
		Example:           `  rookeryctl backends rename be1.example.org mail1.example.org`,
		Args:              exactly("OLD", "NEW"),
		ValidArgsFunction: firstOnly(a.backendNames()),
	}
	cmd.RunE = a.do(func(ctx context.Context, args []string) error {
		from, err := directory.ParseBackend(args[0])
		if err != nil {
			return err
		}
		to, err := directory.ParseBackend(args[1])
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := c.RenameBackend(ctx, from, to)
		if err != nil {
			return err
		}
		return a.tellResult(r, fmt.Sprintf("%s to %s", from, to))
	})
	return cmd
}
