package main

import (
	"github.com/spf13/cobra"

	"github.com/rookery-mail/rookery/client"
	"github.com/rookery-mail/rookery/directory"
)

// The shapes of the JSON documents. Fields are added, never renamed or taken
// away; outputTopic is their manual.

type answerJSON struct {
	Revision    directory.Revision    `json:"revision"`
	Incarnation directory.Incarnation `json:"incarnation"`
	AgeMS       int64                 `json:"age_ms"`
	Node        string                `json:"node"`
}

func answerOf(a client.Answer) answerJSON {
	return answerJSON{a.Revision, a.Incarnation, millis(a.Age), a.Node}
}

type addressJSON struct {
	Service directory.Service `json:"service"`
	IP      string            `json:"ip"`
	Port    uint16            `json:"port"`
	TLS     string            `json:"tls"`
}

func addressesOf(addresses []directory.Address) []addressJSON {
	out := make([]addressJSON, len(addresses))
	for i, a := range addresses {
		out[i] = addressJSON{a.Service, a.IP, a.Port, tlsWord(a.TLS)}
	}
	return out
}

type factJSON struct {
	Server        directory.BackendName `json:"server"`
	Partition     string                `json:"partition"`
	ACL           []aclJSON             `json:"acl"`
	MailboxID     string                `json:"mailbox_id"`
	UIDValidity   uint32                `json:"uidvalidity"`
	Type          string                `json:"type"`
	SpecialUse    string                `json:"special_use"`
	State         string                `json:"state"`
	Standing      string                `json:"standing"`
	Admitted      bool                  `json:"admitted"`
	Confirmed     bool                  `json:"confirmed"`
	FirstRevision directory.Revision    `json:"first_revision"`
	LastRevision  directory.Revision    `json:"last_revision"`
	AgeMS         int64                 `json:"age_ms"`
}

// aclJSON is one entry: an ACL is a list of them because its order is kept.
type aclJSON struct {
	Identifier string `json:"identifier"`
	Rights     string `json:"rights"`
}

func factOf(f client.Fact) factJSON {
	acl := []aclJSON{}
	for identifier, rights := range aclEntries(f.ACL) {
		acl = append(acl, aclJSON{identifier, rights})
	}
	return factJSON{
		Server: f.Server, Partition: f.Partition, ACL: acl, MailboxID: f.MailboxID, UIDValidity: f.UIDValidity, Type: typeWord(f.Type),
		SpecialUse: f.SpecialUse, State: f.State.String(), Standing: f.Standing.String(), Admitted: f.Admitted, Confirmed: f.Confirmed,
		FirstRevision: f.First, LastRevision: f.Last, AgeMS: millis(f.Age),
	}
}

type reservationJSON struct {
	Server      directory.BackendName `json:"server"`
	Partition   string                `json:"partition"`
	AgeMS       int64                 `json:"age_ms"`
	RemainingMS int64                 `json:"remaining_ms"`
}

type holdJSON struct {
	Kind        string `json:"kind"`
	Key         string `json:"key"`
	RemainingMS int64  `json:"remaining_ms"`
	Why         string `json:"why"`
	By          string `json:"by"`
}

func holdOf(h client.Hold) holdJSON {
	return holdJSON{h.Kind.String(), h.Key, millis(h.Remaining), h.Why, h.By}
}

func holdsOf(holds []client.Hold) []holdJSON {
	out := make([]holdJSON, len(holds))
	for i, h := range holds {
		out[i] = holdOf(h)
	}
	return out
}

type routeJSON struct {
	Mailbox           directory.MailboxName   `json:"mailbox"`
	Outcome           string                  `json:"outcome"`
	Server            directory.BackendName   `json:"server"`
	ServerState       string                  `json:"server_state,omitempty"`
	Addresses         []addressJSON           `json:"addresses,omitempty"`
	Group             directory.GroupName     `json:"group"`
	Epoch             uint64                  `json:"epoch"`
	Primary           directory.BackendName   `json:"primary"`
	Forked            bool                    `json:"forked"`
	ChangedRevision   directory.Revision      `json:"changed_revision"`
	ListedFrom        directory.BackendName   `json:"listed_from"`
	Facts             []factJSON              `json:"facts"`
	Reservation       *reservationJSON        `json:"reservation,omitempty"`
	Hold              *holdJSON               `json:"hold,omitempty"`
	Missing           []directory.BackendName `json:"missing,omitempty"`
	Why               string                  `json:"why,omitempty"`
	RecentlyRetracted bool                    `json:"recently_retracted,omitempty"`
	MovedFrom         directory.GroupName     `json:"moved_from,omitempty"`
	MovedAgeMS        int64                   `json:"moved_age_ms,omitempty"`
}

func routeOf(r client.Route) routeJSON {
	out := routeJSON{
		Mailbox: r.Mailbox, Outcome: r.Outcome.String(), Server: r.Server.Name, Group: r.Group, Epoch: r.Epoch, Primary: r.Primary,
		Forked: r.Forked, ChangedRevision: r.Changed, ListedFrom: r.ListedFrom, Missing: r.Missing, Why: r.Why,
		RecentlyRetracted: r.RecentlyRetracted, MovedFrom: r.MovedFrom, Facts: make([]factJSON, len(r.Facts)),
	}
	if r.Server.Name != "" {
		out.ServerState, out.Addresses = r.Server.State.String(), addressesOf(r.Server.Addresses)
	}
	for i, f := range r.Facts {
		out.Facts[i] = factOf(f)
	}
	if res := r.Reservation; res != nil {
		out.Reservation = &reservationJSON{res.Server, res.Partition, millis(res.Age), millis(res.Remaining)}
	}
	if r.Hold != nil {
		out.Hold = new(holdOf(*r.Hold))
	}
	if r.MovedFrom != "" {
		out.MovedAgeMS = millis(r.MovedAge)
	}
	return out
}

type groupJSON struct {
	Name    directory.GroupName     `json:"name"`
	Members []directory.BackendName `json:"members"`
	Primary directory.BackendName   `json:"primary"`
	Epoch   uint64                  `json:"epoch"`
	Mode    string                  `json:"mode"`
	Own     bool                    `json:"own"`
	Hold    *holdJSON               `json:"hold,omitempty"`
	History []switchoverJSON        `json:"history"`
}

type switchoverJSON struct {
	Epoch         uint64                `json:"epoch"`
	From          directory.BackendName `json:"from"`
	To            directory.BackendName `json:"to"`
	By            string                `json:"by"`
	Reason        string                `json:"reason"`
	Revision      directory.Revision    `json:"revision"`
	AgeMS         int64                 `json:"age_ms"`
	Time          string                `json:"time"`
	AcceptMissing bool                  `json:"accept_missing"`
}

func groupOf(g client.Group) groupJSON {
	out := groupJSON{
		Name: g.Name, Members: g.Members, Primary: g.Primary, Epoch: g.Epoch, Mode: modeWord(g.Mode), Own: g.Own,
		History: make([]switchoverJSON, len(g.History)),
	}
	for i, s := range g.History {
		out.History[i] = switchoverJSON{s.Epoch, s.From, s.To, s.By, s.Reason, s.Revision, millis(s.Age), stamp(s.Wall), s.AcceptMissing}
	}
	if g.Hold != nil {
		out.Hold = new(holdOf(*g.Hold))
	}
	return out
}

// resultJSON is what a write came to.
type resultJSON struct {
	Effect     string             `json:"effect"`
	Revision   directory.Revision `json:"revision"`
	Count      int                `json:"count,omitempty"`
	Epoch      uint64             `json:"epoch,omitempty"`
	LapsesInMS int64              `json:"lapses_in_ms,omitempty"`
}

func resultOf(r client.Result) resultJSON {
	return resultJSON{r.Effect.String(), r.Revision, r.Count, r.Epoch, r.Lapses.Milliseconds()}
}

// outputTopic is the manual of what is printed.
func outputTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "output",
		Short: "what the commands print: tables, JSON, IMAP rows",
		Long: `Tables (-o table, the default) are for people and may change. Nothing in them is cut;
an empty cell is "-", an empty table a sentence.

JSON (-o json) is for programs: one document on standard output. Fields are added from
release to release, never renamed or taken away. Names of states are those of the API.
Durations are milliseconds (_ms), -1 where nobody knows; times are RFC 3339. Whatever is
not done ends in an exit code other than 0 and a line on standard error; a document
that broke off is not valid JSON.

  where            {mailbox, outcome, server, server_state, addresses: [ADDRESS], group, epoch, primary,
                   forked, changed_revision, listed_from, facts: [FACT], reservation, hold: HOLD, missing,
                   why, recently_retracted, moved_from, moved_age_ms, answer: ANSWER}; with --why also
                   replica_group: GROUP, holds: [HOLD], completeness: {complete, confirmed, counted,
                   missing}, if_primary_dies
  find             {mailboxes: [as where, without answer]}
  list             {rows: [{name, mailbox, attributes, special_use, rights, child_subscribed, server,
                   outcome}], separator, complete, missing, answer}
  rights           {rights: [{name, mailbox, outcome, rights, visible}]}
  subscriptions    {user, mailboxes}
  watch            a line for each event, each a document: {event, revision, listing, gone} and, by event
                   (mailbox, reservation, subscription, backend, group, hold, settings, mark, reset), what
                   there is of mailbox, outcome, server, group, forked, listed_from, facts, new_name,
                   retracted_by, partition, user, state, admitted, confirmed, primary, epoch, members,
                   merged_into, kind, key, why, by, settings; of a mark its token
  import           {dry_run, files, records, added, changed, unchanged, skipped, refused, forked,
                   moves_completed, moves_aborted, guard_held, overtaken, skips: {reason: count},
                   refusals: [{place, name, reason}], refusals_cut, servers: [{server, records,
                   not_in_dump, confirmed}]}; import subscriptions: without those of facts
  mirror           a line for each event, each a document: {event, time} and, by event (connected, listed,
                   difference, ended, mended, differences, withheld, lost, waiting, speaks-itself, copies),
                   what there is of mailbox, master and directory: {server, partition, acl, reserved}, why,
                   text, records, mailboxes, differences, since, server, lacks, copies, error, retry_ms
  resync begin     {server, token, known, facts, confirmed, held, answer: ANSWER}
  resync diff, apply  {dry_run, server, dump, as_of_revision, revision, incarnation, rounds, listed, facts,
                   add, change, retract, wait, keep, effects: {effect: count}, refused, skips: {reason:
                   count}, refusals: [{place, name, reason}], refusals_cut, differences: [{mailbox, kind:
                   add|change|retract|wait|keep, effect}], differences_cut, equal, settled, withheld,
                   held, confirmed}
  backends         {backends: [{name, id, group, primary, addresses, weight, admitted, state,
                   state_age_ms, drain_approved, confirmed, confirmed_by, confirmed_age_ms, facts,
                   counted, held}]}
  backends admit   {server, facts, overlapping, overlaps: [{mailbox, group, server, same_copy}],
                   admitted, result: RESULT}
  groups           {groups: [GROUP]}
  switchover       {group, from, to, epoch, from_count, to_count, equal, missing_count, extra_count,
                   missing, extra, truncated, refusal, result: RESULT}; the result only if it was done
  hold             {holds: [HOLD]}
  withdrawal list  {held: [{mailbox, server, state, age_ms}]}
  forks            {forks: [as where, without answer]}
  moves            {moves: [{mailbox, server, age_ms}]}
  settings         {default_domain, virt_domains, admission_open, read_only, guard_count, guard_percent,
                   guard_window_ms, ...}: all, or those asked for
  status           {healthy, problems, warnings, cluster_id, revision, incarnation, leader, version,
                   complete, confirmed, counted, missing, not_admitted, counts: {...}, sweeps,
                   nodes: [NODE, asked, error, term, applied_index, commit_index], waiting: [NODE], alarms:
                   [ALARM], health: {compared_age_ms, verdict, differs: [{node, id, index}], scrubbed_age_ms,
                   scrub_done_bytes, scrub_total_bytes, free_bytes, total_bytes, low_bytes, no_space,
                   read_only}, ...}
  alarm list       {alarms: [ALARM], growth_refused, and of ANSWER}
  member list      {members: [NODE], waiting: [NODE], and of ANSWER}
  member ...       {effect, member: NODE, members: [NODE], notes, and of ANSWER}
  move-leader      {effect, from, to, took_ms, and of ANSWER}
  cluster-version  {cluster_version, raised_by_release, oldest_supported, newest_supported, turns_on,
                   in_the_way, members: [NODE], and of ANSWER}
  cluster-version finalize
                   {effect, from, to, turned_on, and of ANSWER}
  compact          {nodes: [{node, before_bytes, after_bytes, took_ms}]}: those that were compacted
  snapshot save    {file, node, cluster_id, incarnation, shard, index, term, revision, bytes}
  snapshot status  {file, bytes, cluster_id, incarnation, shard, index, term, revision, last_command, node,
                   nodes, backends, groups, mailboxes, facts, users, forks}
  snapshot restore {data, name, cluster_id, incarnation, was_cluster_id, was_incarnation, index}
  recover          the same
  cert show        {certificates: [{file, role, name, subject, hosts, ca, serial, from, until, left_ms,
                   sha256, problem}]}
  check            {findings: [{kind, mailbox, detail, advisory}], mailboxes, facts, postings, faults,
                   advisories, revision}
  every write      RESULT

  ADDRESS  {service, ip, port, tls: none|start|implicit}
  ALARM    {kind, node, why, by, age_ms, raised, voter, voters}
  ANSWER   {revision, incarnation, age_ms, node}
  FACT     {server, partition, acl: [{identifier, rights}], mailbox_id, uidvalidity, type, special_use,
           state, standing, admitted, confirmed, first_revision, last_revision, age_ms}
  GROUP    {name, members, primary, epoch, mode, own, hold: HOLD, history: [{epoch, from, to, by,
           reason, revision, age_ms, time, accept_missing}]}
  HOLD     {kind, key, remaining_ms, why, by}
  NODE     {name, id, id_hex, client_address, peer_address, site, voter, learner, leader, heard_ms,
           version, oldest_cluster_version, newest_cluster_version, applied, match,
           trails (-1: not known), active, file_bytes, used_bytes, free_bytes, verified,
           compacting, quarantined}; what a node says of itself is zero until it was heard
  RESULT   {effect, revision, count, epoch, lapses_in_ms}

IMAP rows (list -o imap) are what an IMAP server sends after "* LIST ", octet for octet;
with --return myrights a line "MYRIGHTS name rights" follows its row.`,
	}
}
