package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// writeDump writes the population as `ctl_mboxlist -d` of a Cyrus 3.6 MUPDATE
// master would: a JSON object, one mailbox a line, each with its server. Unlike
// a real master's it has ids and UIDVALIDITY, so that the facts are those that
// the import by this program states (special use apart, which no dump has).
func writeDump(out io.Writer, pop *population) error {
	w := bufio.NewWriterSize(out, 1<<20)
	fmt.Fprint(w, "{")
	var line []byte
	for m := range pop.mailboxes {
		f := pop.fact(m)
		line = line[:0]
		if m > 0 {
			line = append(line, ',')
		}
		line = append(line, '\n')
		line = appendJSON(line, string(f.name))
		line = append(line, `: {"name": `...)
		line = appendJSON(line, string(f.name))
		line = fmt.Appendf(line, `, "mtime": "1795386102", "uidvalidity": "%d", "createdmodseq": "0", "foldermodseq": "0", "mbtype": "er", "partition": "%s", "server": "%s", "acl": {`,
			f.uidValidity, f.partition, serverName(f.server))
		fields := strings.Split(strings.TrimSuffix(f.acl, "\t"), "\t")
		for i := 0; i+1 < len(fields); i += 2 {
			if i > 0 {
				line = append(line, ", "...)
			}
			line = appendJSON(line, fields[i])
			line = append(line, ": "...)
			line = appendJSON(line, fields[i+1])
		}
		line = fmt.Appendf(line, `}, "uniqueid": "%s", "name_history": []}`, f.mailboxID)
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	fmt.Fprint(w, "\n}\n")
	return w.Flush()
}

// appendJSON appends s as a JSON string. A string is never refused.
func appendJSON(dst []byte, s string) []byte {
	text, _ := json.Marshal(s)
	return append(dst, text...)
}
