package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

var alarmKinds = []directory.AlarmKind{directory.AlarmNoSpace, directory.AlarmDiverged, directory.AlarmCorrupt}

func parseAlarm(kind string) (directory.AlarmKind, error) {
	for _, k := range alarmKinds {
		if k.String() == kind {
			return k, nil
		}
	}
	return 0, usagef("alarm %s: an alarm is nospace, diverged or corrupt", kind)
}

type alarmJSON struct {
	Kind   string `json:"kind"`
	Node   string `json:"node"`
	Why    string `json:"why"`
	By     string `json:"by"`
	AgeMS  int64  `json:"age_ms"`
	Raised string `json:"raised"`
	Voter  bool   `json:"voter"`
	Voters int    `json:"voters"`
}

func alarmsJSON(alarms []client.Alarm) []alarmJSON {
	out := []alarmJSON{}
	for _, x := range alarms {
		out = append(out, alarmJSON{x.Kind.String(), x.Node, x.Why, x.By, millis(x.Age), stamp(x.Wall), x.Voter, x.Voters})
	}
	return out
}

func (a *app) alarmCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "alarm",
		Short: "show what is wrong with nodes, and lower an alarm",
		Long: `Shows what nodes have said is wrong with them: a disk that is nearly full (nospace), a state
that is not what the others' is (diverged), a state file that was damaged (corrupt). A node
lowers its own alarm when all is well again. While a majority of the voters has no space, the
cluster takes no growth: free space on one of them, or remove the file ballast in its data
directory. Without arguments the alarms are shown; the exit code is 1 if there are any.`,
		Example: `  rookeryctl alarm list
  rookeryctl alarm disarm nospace n1`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return mustName(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: none,
		RunE:              a.do(a.tellAlarms),
	}
	cmd.AddCommand(&cobra.Command{
		Use:               "list",
		Short:             "show all alarms",
		Long:              `Shows all alarms. The exit code is 1 if there are any.`,
		Example:           `  rookeryctl alarm list -o json`,
		Args:              exactly(),
		ValidArgsFunction: none,
		RunE:              a.do(a.tellAlarms),
	})
	disarm := &cobra.Command{
		Use:   "disarm {nospace|diverged|corrupt} NODE",
		Short: "lower an alarm",
		Long: `Lowers an alarm of a node, for one that cannot do it itself any more: it was removed, say.
A node whose trouble is not over raises its alarm again.`,
		Example: `  rookeryctl alarm disarm nospace n1`,
		Args:    exactly("KIND", "NODE"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			var words []string
			if len(args) == 0 {
				for _, k := range alarmKinds {
					words = append(words, k.String())
				}
			}
			return words, cobra.ShellCompDirectiveNoFileComp
		},
	}
	disarm.RunE = a.do(func(ctx context.Context, args []string) error {
		kind, err := parseAlarm(args[0])
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := c.DisarmAlarm(ctx, kind, args[1])
		if err != nil {
			return err
		}
		if r.Effect == client.Unchanged && a.format != formatJSON {
			a.printf("there is no alarm %s of %s (revision %d)\n", kind, plain(args[1]), r.Revision)
			return nil
		}
		return a.tellResult(r, fmt.Sprintf("alarm %s of %s", kind, args[1]))
	})
	cmd.AddCommand(disarm)
	return cmd
}

func (a *app) tellAlarms(ctx context.Context, _ []string) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	alarms, err := c.ListAlarms(ctx, a.fresh()...)
	if err != nil {
		return err
	}
	if a.format == formatJSON {
		err = a.document(struct {
			Alarms        []alarmJSON `json:"alarms"`
			GrowthRefused string      `json:"growth_refused"`
			answerJSON
		}{alarmsJSON(alarms.List), alarms.GrowthRefused, answerOf(alarms.Answer)})
	} else {
		t := a.table("ALARM", "NODE", "ROLE", ">AGE", "BY", "WHY")
		for _, x := range alarms.List {
			role := "learner"
			if x.Voter {
				role = "voter"
			}
			t.row(x.Kind, x.Node, role, age(x.Age), x.By, x.Why)
		}
		if err = t.end("no node has an alarm"); err == nil && alarms.GrowthRefused != "" {
			a.printf("\ngrowth is refused: %s\n", plain(alarms.GrowthRefused))
		}
	}
	if err == nil && len(alarms.List) > 0 {
		return degraded()
	}
	return err
}

// healthLine is what a node knows of its own state and disk.
func healthLine(h *client.NodeHealth) string {
	text := "state " + map[client.StateVerdict]string{
		client.VerdictUnknown: "not compared with a majority", client.VerdictSame: "the same as a majority's",
		client.VerdictSplit: "differs from others', no majority says who is right", client.VerdictOdd: "not the majority's",
	}[h.Verdict]
	if h.Compared != nil {
		text += ", compared " + age(*h.Compared) + " ago"
	}
	switch {
	case h.ScrubTotal > 0:
		text += fmt.Sprintf("; file scrubbed to %d %%", h.ScrubDone*100/h.ScrubTotal)
	case h.Scrubbed != nil:
		text += "; file scrubbed " + age(*h.Scrubbed) + " ago"
	default:
		text += "; file not scrubbed yet"
	}
	if h.TotalBytes > 0 {
		text += fmt.Sprintf("; %d of %d MiB of the disk free", h.FreeBytes>>20, h.TotalBytes>>20)
	}
	return text
}

type healthJSON struct {
	ComparedAgeMS   int64            `json:"compared_age_ms"`
	Verdict         string           `json:"verdict"`
	Differs         []differenceJSON `json:"differs"`
	ScrubbedAgeMS   int64            `json:"scrubbed_age_ms"`
	ScrubDoneBytes  uint64           `json:"scrub_done_bytes"`
	ScrubTotalBytes uint64           `json:"scrub_total_bytes"`
	FreeBytes       uint64           `json:"free_bytes"`
	TotalBytes      uint64           `json:"total_bytes"`
	LowBytes        uint64           `json:"low_bytes"`
	NoSpace         bool             `json:"no_space"`
	ReadOnly        string           `json:"read_only"`
}

type differenceJSON struct {
	Node  string `json:"node"`
	ID    uint64 `json:"id"`
	Index uint64 `json:"index"`
}

func healthOf(h *client.NodeHealth) *healthJSON {
	if h == nil {
		return nil
	}
	out := &healthJSON{
		Verdict: h.Verdict.String(), Differs: []differenceJSON{}, ScrubDoneBytes: h.ScrubDone, ScrubTotalBytes: h.ScrubTotal,
		FreeBytes: h.FreeBytes, TotalBytes: h.TotalBytes, LowBytes: h.LowBytes, NoSpace: h.NoSpace, ReadOnly: h.ReadOnly,
		ComparedAgeMS: -1, ScrubbedAgeMS: -1,
	}
	if h.Compared != nil {
		out.ComparedAgeMS = millis(*h.Compared)
	}
	if h.Scrubbed != nil {
		out.ScrubbedAgeMS = millis(*h.Scrubbed)
	}
	for _, d := range h.Differs {
		out.Differs = append(out.Differs, differenceJSON(d))
	}
	return out
}
