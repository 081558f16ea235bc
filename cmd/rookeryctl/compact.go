package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

type compactionJSON struct {
	Node        string `json:"node"`
	BeforeBytes uint64 `json:"before_bytes"`
	AfterBytes  uint64 `json:"after_bytes"`
	TookMS      int64  `json:"took_ms"`
}

func (a *app) compactCmd() *cobra.Command {
	var node string
	var all, force bool
	cmd := &cobra.Command{
		Use:   "compact {--node NAME | --all}",
		Short: "rewrite the state files without their holes",
		Long: `Rewrites the state file of a node without its holes, while the node serves. A state file
grows with what it holds and does not shrink by itself: after large deletions IN USE of
` + "`rookeryctl status`" + ` is far below FILE. It needs free disk for a second file meanwhile.

One node of the cluster does it at a time, and the leader not: --all takes the others first,
one after the other, then moves the leadership and takes the last. Each node is asked at
its own client address; one that cannot be reached there is told, and the others go on.
A cluster of one node needs no --node.`,
		Example: `  rookeryctl compact --all
  rookeryctl compact --node n2`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	f := cmd.Flags()
	f.StringVar(&node, "node", "", "compact this `node`")
	f.BoolVar(&all, "all", false, "compact every node, one after the other, the leader last")
	f.BoolVar(&force, "force", false, "also if the node leads")
	complete(cmd, "node", a.nodeNames(false))
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		if all && (node != "" || force) {
			return usagef("compact: --all goes with neither --node nor --force")
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		nodes := slices.Clone(st.Nodes)
		switch {
		case node != "":
			nodes = slices.DeleteFunc(nodes, func(n client.Node) bool { return n.Name != node })
			if len(nodes) == 0 {
				return refusedf("refused: no member is %s; `rookeryctl member list` shows them", node)
			}
		case !all && len(nodes) > 1:
			return usagef("compact: which of the %d nodes? --node NAME or --all", len(nodes))
		}
		done, skipped, err := a.compactEach(ctx, c, st, nodes, all, force)
		if a.format == formatJSON && (err == nil || len(done) > 0) {
			if err := a.document(struct {
				Nodes   []compactionJSON `json:"nodes"`
				Skipped []string         `json:"skipped"`
			}{done, list(skipped)}); err != nil {
				return err
			}
		}
		switch {
		case err != nil || len(skipped) == 0:
			return err
		case len(done) == 0:
			return &fault{code: exitCannotAsk, text: "no node is compacted; not reached: " + strings.Join(skipped, ", ")}
		}
		var names []string
		for _, d := range done {
			names = append(names, d.Node)
		}
		return refusedf("compacted: %s; not reached and not compacted: %s", strings.Join(names, ", "), strings.Join(skipped, ", "))
	})
	return cmd
}

// compactEach compacts one node after the other. With all the leader comes last,
// when it leads no more, and who cannot be reached is skipped.
func (a *app) compactEach(ctx context.Context, c *client.Client, st client.Status, nodes []client.Node, all, force bool) (done []compactionJSON, skipped []string, err error) {
	slices.SortStableFunc(nodes, func(x, y client.Node) int {
		if x.Leader != y.Leader {
			return map[bool]int{true: 1, false: -1}[x.Leader]
		}
		return cmp.Compare(x.Name, y.Name)
	})
	voters := 0
	for _, n := range st.Nodes {
		if n.Voter {
			voters++
		}
	}
	done = []compactionJSON{}
	for _, n := range nodes {
		if all && n.Leader && voters > 1 {
			m, err := c.MoveLeader(ctx, client.NodeRef{})
			if err != nil {
				return done, skipped, within(err, "%s leads and is not compacted", n.Name)
			}
			if a.format != formatJSON {
				a.tellLeaderMove(m)
				a.stdout.Flush()
			}
		}
		r, err := a.compactOne(ctx, n, force)
		if all && ctx.Err() == nil && errors.Is(err, errUnreachable) {
			a.note("%s is skipped: %v", n.Name, err)
			skipped = append(skipped, fmt.Sprintf("%s (%s)", n.Name, cmp.Or(n.ClientAddress, "no client address is known")))
			continue
		}
		if err != nil {
			return done, skipped, within(err, "%s is not compacted", n.Name)
		}
		done = append(done, compactionJSON{n.Name, r.Before, r.After, r.Took.Milliseconds()})
		if a.format != formatJSON {
			a.printf("%s: %s before, %s now; it took %v\n", n.Name, size(r.Before), size(r.After), r.Took.Round(time.Millisecond))
			a.stdout.Flush()
		}
	}
	return done, skipped, nil
}

// Nodes tell each other every second who compacts: so long the node before may
// still be taken for one that does.
const (
	busyFor  = 10 * time.Second
	busyStep = 500 * time.Millisecond
)

// compactOne compacts one node. Its error is errUnreachable if nobody answered there.
func (a *app) compactOne(ctx context.Context, n client.Node, force bool) (client.Compaction, error) {
	outer := ctx
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	// What is known of the other nodes says nothing of this one.
	reached := newReach(cancel)
	reached.nodes = 1
	c, at, err := a.dialNode(ctx, n, reached)
	if err != nil {
		return client.Compaction{}, err
	}
	defer c.Close()
	draw := a.progress()
	defer draw.clear()
	for until := time.Now().Add(busyFor); ; {
		r, err := c.Compact(ctx, n.Name, force, func(done, total uint64) error {
			draw.draw(n.Name + ": " + size(done) + " of " + size(total))
			return nil
		})
		if err != nil && cannotAsk(err) && !errors.Is(err, client.ErrUnsupported) && outer.Err() == nil {
			why := strings.ReplaceAll(reached.why(err), " (--endpoints, ROOKERY_ENDPOINTS)", "")
			return r, &fault{code: exitCannotAsk, text: "cannot ask " + at + ": " + why, err: errUnreachable}
		}
		if !errors.Is(err, directory.ErrBusy) || time.Now().After(until) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(busyStep):
		}
	}
}

// dialNode connects to one node and no other, and returns where: at its client
// address, or where that is not known at the endpoint that answers under its name.
func (a *app) dialNode(ctx context.Context, n client.Node, reached *reach) (c *client.Client, at string, err error) {
	if n.ClientAddress != "" {
		c, err = a.dial([]string{n.ClientAddress}, reached.observe)
		return c, n.ClientAddress, err
	}
	endpoints, err := a.nodes()
	if err != nil {
		return nil, "", err
	}
	for _, endpoint := range endpoints {
		if m := a.askOne(ctx, endpoint); m.self != nil && m.self.Node == n.Name {
			c, err = a.dial([]string{endpoint}, reached.observe)
			return c, endpoint, err
		}
	}
	text := fmt.Sprintf("refused: no client address of %s is known; name it in --endpoints", n.Name)
	return nil, "", &fault{code: exitRefused, text: text, err: errUnreachable}
}
