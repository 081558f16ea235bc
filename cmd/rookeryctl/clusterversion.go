package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
)

func (a *app) clusterVersionCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster-version",
		Short: "show what the nodes' releases have in force, and end an upgrade",
		Long: `Shows the cluster version, which versions each node's release supports, what raising it would
turn on and who is in the way. What a release brings in new commands, rules and formats waits
for the version that it came with, so that nodes of two releases run side by side and either
can be put back. "finalize" ends that: it raises the version for good.`,
		Example: `  rookeryctl cluster-version
  rookeryctl cluster-version finalize`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return mustName(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: none,
	}
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		v, err := c.GetClusterVersion(ctx, a.fresh()...)
		if errors.Is(err, client.ErrUnsupported) {
			v, err = a.olderVersion(ctx, c)
		}
		if err != nil {
			return err
		}
		return a.tellClusterVersion(v)
	})
	cmd.AddCommand(a.finalizeCmd())
	return cmd
}

// olderVersion makes of a node's status what it could not say: its release knows
// version 1 alone.
func (a *app) olderVersion(ctx context.Context, c *client.Client) (client.ClusterVersion, error) {
	st, err := c.Status(ctx, a.fresh()...)
	if err != nil {
		return client.ClusterVersion{}, err
	}
	return client.ClusterVersion{
		Answer: st.Answer, Version: st.ClusterVersion, Oldest: 1, Newest: 1, Nodes: st.Nodes,
		InTheWay: []string{st.Node + ", which answered, runs release " + st.Version + ", which supports cluster version 1: upgrade it"},
	}, nil
}

type clusterVersionJSON struct {
	Version  uint32       `json:"cluster_version"`
	Release  string       `json:"raised_by_release"`
	Oldest   uint32       `json:"oldest_supported"`
	Newest   uint32       `json:"newest_supported"`
	TurnsOn  []string     `json:"turns_on"`
	InTheWay []string     `json:"in_the_way"`
	Members  []memberJSON `json:"members"`
	answerJSON
}

func (a *app) tellClusterVersion(v client.ClusterVersion) error {
	if a.format == formatJSON {
		return a.document(clusterVersionJSON{
			v.Version, v.Release, v.Oldest, v.Newest, list(v.TurnsOn), list(v.InTheWay), membersOf(v.Nodes), answerOf(v.Answer),
		})
	}
	by := ""
	if v.Release != "" {
		by = ", raised by release " + v.Release
	}
	a.printf("cluster version %d is in force%s\n\n", v.Version, by)
	t := a.table("NODE", "ROLE", "VERSION", "SUPPORTS", ">HEARD")
	for _, n := range v.Nodes {
		t.row(n.Name, roleWord(n), n.Version, supports(n), heard(n))
	}
	if err := t.end("no node is known"); err != nil {
		return err
	}
	a.printf("\n")
	for _, line := range v.TurnsOn {
		a.printf("version %d turns on: %s\n", v.Newest, plain(line))
	}
	for _, why := range v.InTheWay {
		a.printf("in the way: %s\n", plain(why))
	}
	switch {
	case len(v.InTheWay) > 0:
	case v.Version < v.Newest:
		a.printf("All nodes support version %d: `rookeryctl cluster-version finalize` raises it, and\nno release that does not support it can be put back then.\n", v.Newest)
	default:
		a.printf("It is the newest that the node that answered supports.\n")
	}
	return nil
}

type finalizedJSON struct {
	Effect   string   `json:"effect"`
	From     uint32   `json:"from"`
	To       uint32   `json:"to"`
	TurnedOn []string `json:"turned_on"`
	answerJSON
}

func (a *app) finalizeCmd() *cobra.Command {
	var version uint32
	var yes bool
	cmd := &cobra.Command{
		Use:   "finalize",
		Short: "raise the cluster version, for good",
		Long: `Raises the cluster version, to the newest that the leader's release supports: what came with
it is in force from then on. There is no way back: a release that does not support the new
version refuses to start on a node's data, and one that runs stops. Refused while a member is
of such a release, or was not heard within the last seconds. Do it when the new release has
run on every node for as long as you want to be able to leave it. Made again it changes
nothing.`,
		Example: `  rookeryctl cluster-version finalize
  rookeryctl cluster-version finalize --version 2 --yes`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	cmd.Flags().Uint32Var(&version, "version", 0, "raise it to this `version`; by default the newest that the leader supports")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	complete(cmd, "version", none)
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		if !yes && a.format != formatJSON {
			v, err := c.GetClusterVersion(ctx, a.fresh()...)
			switch {
			case errors.Is(err, client.ErrUnsupported): // the refusal says it better
			case err != nil:
				return err
			case v.Version < v.Newest && len(v.InTheWay) == 0 && (version == 0 || version > v.Version):
				if err := a.tellClusterVersion(v); err != nil {
					return err
				}
				if !a.confirm("An older release cannot be put back after this. Raise the cluster version?") {
					return refusedf("nothing was changed: the older release could not be put back after it; --yes does it all the same")
				}
			}
		}
		r, err := c.FinalizeClusterVersion(ctx, version)
		if errors.Is(err, client.ErrUnsupported) {
			return refusedf("the node that answered is of a release that supports cluster version 1 alone: upgrade it; `rookeryctl cluster-version` shows which")
		}
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			return a.document(finalizedJSON{r.Effect.String(), r.From, r.To, list(r.TurnedOn), answerOf(r.Answer)})
		}
		if r.Effect == client.Unchanged {
			a.printf("Nothing was changed: cluster version %d is in force.\n", r.To)
			return nil
		}
		a.printf("Cluster version %d is in force, instead of %d.\n", r.To, r.From)
		for _, line := range r.TurnedOn {
			a.printf("turned on: %s\n", plain(line))
		}
		return nil
	})
	return cmd
}
