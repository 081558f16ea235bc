package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// exactly asks for these arguments, all of them and no others.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usagef("%s: %s is missing", path(cmd), strings.Join(names[len(args):], " "))
		case len(args) > len(names):
			return usagef("%s: %q is one argument too many", path(cmd), args[len(names)])
		}
		return nil
	}
}

// atMost asks for none of these arguments, or some.
func atMost(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > len(names) {
			return usagef("%s: %q is one argument too many", path(cmd), args[len(names)])
		}
		return nil
	}
}

// atLeastOne asks for one or more.
func atLeastOne(name string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usagef("%s: %s is missing", path(cmd), name)
		}
		return nil
	}
}

// required marks flags that must be stated.
func required(cmd *cobra.Command, flags ...string) {
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		for _, name := range flags {
			if !cmd.Flags().Changed(name) {
				return usagef("%s: --%s is missing", path(cmd), name)
			}
		}
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
	for _, name := range flags {
		if f := cmd.Flags().Lookup(name); f != nil {
			f.Usage += " (required)"
		}
	}
}

// identity are the flags that say who asks, and how names look to them.
type identity struct {
	user    string
	groups  []string
	admin   bool
	alt     bool
	slash   bool
	virtual bool
	cross   bool
	domain  string
}

func (id *identity) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&id.user, "user", "", "as this user, `id[@domain]`; \"anonymous\" is the anonymous login")
	f.StringSliceVar(&id.groups, "acl-groups", nil, "who is in these ACL groups, `name,...`, with or without \"group:\"")
	f.BoolVar(&id.admin, "admin", false, "as an administrator of the site: all names, in the administrators' form")
	f.BoolVar(&id.alt, "altnamespace", false, "client form as Cyrus has it with altnamespace: own folders beside INBOX")
	f.BoolVar(&id.slash, "unixhierarchysep", false, "client form as Cyrus has it with unixhierarchysep: separator / instead of .")
	f.BoolVar(&id.virtual, "virtdomains", false, "client form as Cyrus has it with virtdomains")
	f.BoolVar(&id.cross, "crossdomains", false, "client form as Cyrus has it with crossdomains")
	f.StringVar(&id.domain, "defaultdomain", "", "users of this `domain` have ids without one; the cluster's if not stated")
}

// principal says who asks.
func (id *identity) principal() (directory.Principal, error) {
	if id.user == "" && !id.admin {
		return directory.Principal{}, usagef("--user is missing: whose view is it? (--admin is the administrators')")
	}
	return directory.ParsePrincipal(id.user, id.groups, id.admin)
}

// namespace says how names look.
func (id *identity) namespace() directory.Namespace {
	ns := directory.Namespace{Alt: id.alt, Sep: '.', VirtDomains: id.virtual, CrossDomains: id.cross, DefaultDomain: id.domain}
	if id.slash {
		ns.Sep = '/'
	}
	return ns
}

// parseACL reads an ACL as people write it: identifier and rights in turn,
// separated by spaces, or by TABs where an identifier has a space in it.
func parseACL(s string) (string, error) {
	var words []string
	if strings.Contains(s, "\t") {
		words = strings.Split(strings.TrimSuffix(s, "\t"), "\t")
	} else {
		words = strings.Fields(s)
	}
	if len(words)%2 != 0 {
		return "", fmt.Errorf("%w: %q: an identifier without rights; it is IDENTIFIER RIGHTS, as often as needed", directory.ErrInvalidACL, s)
	}
	var acl strings.Builder
	for _, w := range words {
		acl.WriteString(w + "\t")
	}
	return acl.String(), directory.CheckACL(acl.String())
}

// mailboxTypes are the words for Cyrus's letters.
var mailboxTypes = []struct {
	kind directory.MailboxType
	word string
}{
	{directory.TypeEmail, "email"}, {directory.TypeNews, "news"}, {directory.TypeCollection, "collection"}, {directory.TypeCalendar, "calendar"},
	{directory.TypeAddressbook, "addressbook"}, {directory.TypeSubmission, "submission"}, {directory.TypePush, "push"}, {directory.TypeSieve, "sieve"},
}

func typeWord(t directory.MailboxType) string {
	for _, m := range mailboxTypes {
		if m.kind == t {
			return m.word
		}
	}
	return "unknown"
}

func typeWords() []string {
	var words []string
	for _, m := range mailboxTypes {
		words = append(words, m.word)
	}
	return words
}

// parseType takes the word or Cyrus's letter.
func parseType(s string) (directory.MailboxType, error) {
	for _, m := range mailboxTypes {
		if s == m.word || s == string(rune(m.kind)) {
			return m.kind, nil
		}
	}
	return 0, usagef("--type %s: it is one of %s", s, strings.Join(typeWords(), ", "))
}

// fixed completes a flag from these words.
func fixed(cmd *cobra.Command, flag string, words ...string) {
	complete(cmd, flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	})
}

// complete registers how a flag is completed. It fails only for a flag that is
// not there, which a test finds.
func complete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err)
	}
}

// none completes nothing, not even files.
func none(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completionWait is how long the shell is kept waiting for a completion.
const completionWait = time.Second

// asked completes from what the directory answers; if it does not, from nothing.
func (a *app) asked(ask func(context.Context, *client.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		c, err := a.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionWait)
		defer cancel()
		words, err := ask(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		slices.Sort(words)
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// backendNames completes the name of a backend.
func (a *app) backendNames() cobra.CompletionFunc {
	return a.asked(func(ctx context.Context, c *client.Client) ([]string, error) {
		backends, err := c.ListBackends(ctx, "", client.Stale(0))
		var names []string
		for _, b := range backends {
			names = append(names, string(b.Name))
		}
		return names, err
	})
}

// groupNames completes the name of a replica group.
func (a *app) groupNames() cobra.CompletionFunc {
	return a.asked(func(ctx context.Context, c *client.Client) ([]string, error) {
		groups, err := c.ListGroups(ctx, "", client.Stale(0))
		var names []string
		for _, g := range groups {
			names = append(names, string(g.Name))
		}
		return names, err
	})
}

// firstOnly completes the first argument alone.
func firstOnly(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(cmd, args, toComplete)
	}
}
