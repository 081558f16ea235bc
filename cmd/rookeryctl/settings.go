package main

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// setting is one of the cluster's settings: its name, its value (a string, bool,
// number or directory.Time), and how a value in words goes into a change.
type setting struct {
	name  string
	about string
	value func(directory.Settings) any
	set   func(*client.SettingsChange, string) error
}

// settingsKnown are all settings, in the order of printing.
func settingsKnown() []setting {
	return []setting{
		{"default-domain", "the domain whose users have ids without one",
			func(s directory.Settings) any { return s.DefaultDomain },
			func(c *client.SettingsChange, v string) error { c.DefaultDomain = &v; return nil }},
		{"virt-domains", "names of other domains are served",
			func(s directory.Settings) any { return s.VirtDomains },
			func(c *client.SettingsChange, v string) error { return setBool(&c.VirtDomains, v) }},
		{"admission-open", "an unknown backend that asserts is admitted at once",
			func(s directory.Settings) any { return s.AdmissionOpen },
			func(c *client.SettingsChange, v string) error { return setBool(&c.AdmissionOpen, v) }},
		{"read-only", "the cluster takes no growth",
			func(s directory.Settings) any { return s.ReadOnly },
			func(c *client.SettingsChange, v string) error { return setBool(&c.ReadOnly, v) }},
		{"guard-count", "withdrawals of one backend in guard-window that are believed at least",
			func(s directory.Settings) any { return s.GuardCount },
			func(c *client.SettingsChange, v string) error { return setNumber(&c.GuardCount, v) }},
		{"guard-percent", "or so many percent of its mailboxes, if that is more",
			func(s directory.Settings) any { return s.GuardPercent },
			func(c *client.SettingsChange, v string) error { return setNumber(&c.GuardPercent, v) }},
		{"guard-window", "within this time",
			func(s directory.Settings) any { return s.GuardWindow },
			func(c *client.SettingsChange, v string) error { return setDuration(&c.GuardWindow, v) }},
		{"reserve-grace", "how long a reservation lasts once its backend is heard again",
			func(s directory.Settings) any { return s.ReserveGrace },
			func(c *client.SettingsChange, v string) error { return setDuration(&c.ReserveGrace, v) }},
		{"reserve-max", "how long silence keeps a reservation",
			func(s directory.Settings) any { return s.ReserveMax },
			func(c *client.SettingsChange, v string) error { return setDuration(&c.ReserveMax, v) }},
		{"delivery-grace", "how long after an INBOX was retracted delivery answers \"later\"",
			func(s directory.Settings) any { return s.DeliveryGrace },
			func(c *client.SettingsChange, v string) error { return setDuration(&c.DeliveryGrace, v) }},
		{"tombstone-keep", "how long names that ended or moved are remembered",
			func(s directory.Settings) any { return s.TombstoneKeep },
			func(c *client.SettingsChange, v string) error { return setDuration(&c.TombstoneKeep, v) }},
		{"log-keep", "revisions of the change log that are kept",
			func(s directory.Settings) any { return s.LogKeep },
			func(c *client.SettingsChange, v string) error { return setNumber(&c.LogKeep, v) }},
		{"request-keep", "how long a client's last result is kept for its retries",
			func(s directory.Settings) any { return s.RequestKeep },
			func(c *client.SettingsChange, v string) error { return setDuration(&c.RequestKeep, v) }},
		{"automation-paused", "the directory moves no primary by itself",
			func(s directory.Settings) any { return s.AutomationPaused },
			func(c *client.SettingsChange, v string) error { return setBool(&c.AutomationPaused, v) }},
	}
}

// words is a setting's value for people.
func words(value any) any {
	if b, ok := value.(bool); ok {
		return yesNo(b)
	}
	return value
}

// jsonField is a setting in JSON: its name there and its value.
func (s setting) jsonField(values directory.Settings) (string, any) {
	name := strings.ReplaceAll(s.name, "-", "_")
	switch v := s.value(values).(type) {
	case directory.Time:
		return name + "_ms", uint64(v)
	default:
		return name, v
	}
}

func setBool(to **bool, v string) error {
	switch strings.ToLower(v) {
	case "yes", "on", "true", "1":
		*to = new(true)
	case "no", "off", "false", "0":
		*to = new(false)
	default:
		return usagef("it is yes or no")
	}
	return nil
}

func setNumber[N uint32 | uint64](to **N, v string) error {
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil || uint64(N(n)) != n {
		return usagef("it is a number")
	}
	*to = new(N(n))
	return nil
}

func setDuration(to **time.Duration, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return usagef("it is a duration, as 10m or 1h30m")
	}
	*to = &d
	return nil
}

// settingNamed takes a name with - or _ between its words.
func settingNamed(name string) (setting, error) {
	var names []string
	for _, s := range settingsKnown() {
		if s.name == strings.ReplaceAll(name, "_", "-") {
			return s, nil
		}
		names = append(names, s.name)
	}
	return setting{}, usagef("%s: there is no such setting; they are %s", name, strings.Join(names, ", "))
}

// settingNames completes the name of a setting.
func settingNames(suffix string) cobra.CompletionFunc {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var words []string
		for _, s := range settingsKnown() {
			words = append(words, s.name+suffix+"\t"+s.about)
		}
		return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

func (a *app) settingsCmd() *cobra.Command {
	get := a.do(func(ctx context.Context, args []string) error {
		chosen := settingsKnown()
		if len(args) > 0 {
			chosen = nil
			for _, name := range args {
				s, err := settingNamed(name)
				if err != nil {
					return err
				}
				chosen = append(chosen, s)
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		values, err := c.GetSettings(ctx, a.fresh()...)
		if err != nil {
			return err
		}
		if a.format == formatJSON {
			out := make(map[string]any)
			for _, s := range chosen {
				name, value := s.jsonField(values)
				out[name] = value
			}
			return a.document(out)
		}
		t := a.table("SETTING", "VALUE", "MEANS")
		for _, s := range chosen {
			t.row(s.name, words(s.value(values)), s.about)
		}
		return t.end("")
	})
	var list strings.Builder
	for _, s := range settingsKnown() {
		list.WriteString("\n  " + s.name + strings.Repeat(" ", 19-len(s.name)) + s.about)
	}
	cmd := &cobra.Command{
		Use:   "settings",
		Short: "show and change what the whole cluster agrees on",
		Long: `Shows and changes the settings of the whole cluster. Values are yes or no, numbers, and
durations as 10m.
` + list.String(),
		Example: `  rookeryctl settings
  rookeryctl settings set admission-open=no`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return mustName(cmd, args)
			}
			return nil
		},
		ValidArgsFunction: none,
		RunE:              get,
	}
	set := &cobra.Command{
		Use:               "set NAME=VALUE...",
		Short:             "change settings",
		Long:              `Changes the settings stated and keeps the rest.`,
		Example:           `  rookeryctl settings set guard-count=1000 guard-window=20m`,
		Args:              atLeastOne("NAME=VALUE"),
		ValidArgsFunction: settingNames("="),
	}
	set.RunE = a.do(func(ctx context.Context, args []string) error {
		var change client.SettingsChange
		for _, arg := range args {
			name, value, ok := strings.Cut(arg, "=")
			if !ok {
				return usagef("%s %s: it is NAME=VALUE", path(set), arg)
			}
			s, err := settingNamed(name)
			if err != nil {
				return err
			}
			if err := s.set(&change, value); err != nil {
				return usagef("%s: %v", arg, err)
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		r, err := c.SetSettings(ctx, change)
		if err != nil {
			return err
		}
		return a.tellResult(r, "settings")
	})
	cmd.AddCommand(&cobra.Command{
		Use:               "get [NAME...]",
		Short:             "show settings",
		Long:              `Shows all settings, or those named.`,
		Example:           `  rookeryctl settings get read-only -o json`,
		ValidArgsFunction: settingNames(""),
		RunE:              get,
	}, set)
	return cmd
}
