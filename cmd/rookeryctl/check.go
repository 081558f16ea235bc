package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

type findingJSON struct {
	Kind     string                `json:"kind"`
	Mailbox  directory.MailboxName `json:"mailbox"`
	Detail   string                `json:"detail"`
	Advisory bool                  `json:"advisory"`
}

type checkJSON struct {
	Mailboxes  uint64             `json:"mailboxes"`
	Facts      uint64             `json:"facts"`
	Postings   uint64             `json:"postings"`
	Faults     uint64             `json:"faults"`
	Advisories uint64             `json:"advisories"`
	Revision   directory.Revision `json:"revision"`
}

func (a *app) checkCmd() *cobra.Command {
	var limit int
	cmd := &cobra.Command{
		Use:   "check",
		Short: "recompute every index of a node from the facts, and compare",
		Long: `Has a node recompute every index, posting and digest from the facts and compare. It reads
everything: minutes at ten million mailboxes. Faults are damage, and make the exit code 1.
Advisories are copies that moves, deletes and settled forks left on backends' disks.`,
		Example:           `  rookeryctl check`,
		Args:              exactly(),
		ValidArgsFunction: none,
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "print at most so `many` findings; 0 is 1000. All are counted")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		if limit < 0 {
			return usagef("--limit %d: it cannot be negative", limit)
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		return a.check(ctx, c, limit)
	})
	return cmd
}

func (a *app) check(ctx context.Context, c *client.Client, limit int) error {
	show := a.progress()
	findings := []client.CheckEvent{}
	wait, first, cancel := a.until(ctx)
	defer cancel()
	sum, err := c.Check(wait, limit, func(e client.CheckEvent) error {
		first()
		if e.Kind != "" {
			findings = append(findings, e)
			return nil
		}
		line := fmt.Sprintf("%s: %d", e.Phase, e.Done)
		if e.Total > 0 {
			line += fmt.Sprintf(" of %d (%d %%)", e.Total, 100*e.Done/e.Total)
		}
		show.draw(line)
		return nil
	}, a.fresh()...)
	show.clear()
	if err != nil {
		return err
	}
	if a.format == formatJSON {
		out := a.array("findings")
		for _, f := range findings {
			if err := out.item(findingJSON{f.Kind, f.Mailbox, f.Detail, f.Advisory}); err != nil {
				return err
			}
		}
		if err := out.end(checkJSON{sum.Mailboxes, sum.Facts, sum.Postings, sum.Faults, sum.Advisories, sum.Revision}); err != nil {
			return err
		}
	} else if err := a.tellCheck(findings, sum); err != nil {
		return err
	}
	if sum.Faults > 0 {
		return degraded()
	}
	return nil
}

func (a *app) tellCheck(findings []client.CheckEvent, sum client.CheckSummary) error {
	verdict := "ok"
	if sum.Faults > 0 {
		verdict = plural(sum.Faults, "fault")
	}
	a.printf("%s: %s, %s, %s looked at on %s at revision %d; %s\n", verdict, mailboxCount(sum.Mailboxes), plural(sum.Facts, "fact"), plural(sum.Postings, "posting"), sum.Node, sum.Revision, plural(sum.Advisories, "advisory"))
	if len(findings) == 0 {
		return nil
	}
	a.printf("\n")
	t := a.table("FINDING", "KIND", "MAILBOX", "DETAIL")
	for _, f := range findings {
		weight := "FAULT"
		if f.Advisory {
			weight = "advisory"
		}
		t.row(weight, f.Kind, f.Mailbox, f.Detail)
	}
	if err := t.end(""); err != nil {
		return err
	}
	if more := sum.Faults + sum.Advisories - min(sum.Faults+sum.Advisories, uint64(len(findings))); more > 0 {
		a.printf("and %d more (--limit)\n", more)
	}
	return nil
}
