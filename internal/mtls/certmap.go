package mtls

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Map says who the holders of certificates are that say it in another way than
// rookery://ROLE/NAME: those of a CA that the site has already. It does not change.
type Map struct {
	lines []mapLine
}

// mapLine is one line of a file.
type mapLine struct {
	kind string
	text string // the pattern
	role Role   // "" refuses
	name string // "" is the value; "*" stands for what the pattern's did
}

// What a pattern may look at, in a certificate.
var mapKinds = map[string]func(*x509.Certificate) []string{
	"cn": func(c *x509.Certificate) []string {
		if c.Subject.CommonName == "" {
			return nil
		}
		return []string{c.Subject.CommonName}
	},
	"dns": func(c *x509.Certificate) []string {
		var names []string
		for _, n := range c.DNSNames {
			names = append(names, strings.ToLower(n))
		}
		return names
	},
	"email": func(c *x509.Certificate) []string { return c.EmailAddresses },
	"ip": func(c *x509.Certificate) []string {
		var addresses []string
		for _, ip := range c.IPAddresses {
			addresses = append(addresses, ip.String())
		}
		return addresses
	},
	"serial": func(c *x509.Certificate) []string { return []string{fmt.Sprintf("%x", c.SerialNumber)} },
	"uri": func(c *x509.Certificate) []string {
		var uris []string
		for _, u := range c.URIs {
			uris = append(uris, u.String())
		}
		return uris
	},
}

// maxMap bounds a file, in octets.
const maxMap = 1 << 20

// ParseMap reads the file of --cert-map. A line is
//
//	KIND:PATTERN: ROLE[:NAME]
//
// "#" begins a comment line. KIND says where in the certificate to look: dns, uri,
// email, ip or cn (the subject's common name, where a CA puts names there), or
// serial, in hexadecimal. In PATTERN one "*" stands for any characters but "." and
// "/". ROLE is backend, frontend, failover, operator or node, or none, which
// refuses the certificate whoever has signed it. NAME is by default what the
// pattern matched; "*" in it stands for what the pattern's did.
//
//	# nodes, by their hosts; the node n1 has n1.nodes.example.org
//	dns:*.nodes.example.org: node:*
//	dns:imap*.example.org: backend
//	uri:spiffe://example.org/mail/frontend-*: frontend:fe*
//	email:carol@example.org: operator:carol
//	# lost with a laptop
//	serial:5f3a19c0: none
//
// The first line that fits any of the certificate's names holds. A certificate
// that no line fits is who its own URI says.
//
// An error names the line.
func ParseMap(data []byte) (*Map, error) {
	if len(data) > maxMap {
		return nil, fmt.Errorf("mtls: a certificate map of %d octets: at most %d", len(data), maxMap)
	}
	m := &Map{}
	seen := make(map[string]int)
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, maxMap+1)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		line, err := parseMapLine(text)
		if err != nil {
			return nil, fmt.Errorf("mtls: line %d: %w", n, err)
		}
		key := line.kind + ":" + line.text
		if before := seen[key]; before > 0 {
			return nil, fmt.Errorf("mtls: line %d: %s stands in line %d already", n, key, before)
		}
		seen[key] = n
		m.lines = append(m.lines, line)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("mtls: %w", err)
	}
	return m, nil
}

func parseMapLine(text string) (mapLine, error) {
	if !utf8.ValidString(text) {
		return mapLine{}, errors.New("it is not UTF-8")
	}
	// The last colon that a blank follows: a pattern may have colons, and a common
	// name blanks too.
	at := strings.LastIndex(text, ": ")
	if at < 0 {
		return mapLine{}, fmt.Errorf("%q is not KIND:PATTERN: ROLE[:NAME]", text)
	}
	kind, pattern, ok := strings.Cut(text[:at], ":")
	if !ok || mapKinds[kind] == nil {
		return mapLine{}, fmt.Errorf("%q does not begin with one of dns:, uri:, email:, ip:, cn: and serial: as it must", text)
	}
	pattern = strings.TrimSpace(pattern)
	if kind == "dns" || kind == "serial" {
		pattern = strings.ToLower(pattern)
	}
	if kind == "serial" {
		pattern = strings.TrimLeft(strings.ReplaceAll(pattern, ":", ""), "0")
	}
	stars := strings.Count(pattern, "*")
	switch {
	case pattern == "":
		return mapLine{}, errors.New("the pattern is empty")
	case stars > 1:
		return mapLine{}, fmt.Errorf("%q: one * is the most", pattern)
	case kind == "serial" && strings.Trim(pattern, "0123456789abcdef") != "":
		return mapLine{}, fmt.Errorf("%q is no serial number in hexadecimal", pattern)
	}
	line := mapLine{kind: kind, text: pattern}

	role, name, named := strings.Cut(strings.TrimSpace(text[at+2:]), ":")
	switch {
	case role == "none" && !named:
		return line, nil
	case role == "none":
		return mapLine{}, errors.New("none has no name")
	case !slices.Contains(Roles(), Role(role)):
		return mapLine{}, fmt.Errorf("%q is no role: it is backend, frontend, failover, operator, node or none", role)
	case named && name == "":
		return mapLine{}, errors.New("a colon and no name behind it")
	case strings.Count(name, "*") > stars:
		return mapLine{}, fmt.Errorf("%q: the pattern has no * that the name's could stand for", name)
	}
	line.role, line.name = Role(role), name
	if named {
		// What a pattern puts in for the star is checked when it is known.
		if err := (Identity{line.role, strings.ReplaceAll(name, "*", "x")}).Check(); err != nil {
			return mapLine{}, err
		}
	}
	return line, nil
}

// find returns who the first line that fits says the holder is; false if none does.
func (m *Map) find(cert *x509.Certificate) (Identity, bool, error) {
	if m == nil {
		return Identity{}, false, nil
	}
	for _, line := range m.lines {
		for _, value := range mapKinds[line.kind](cert) {
			part, ok := line.fits(value)
			if !ok {
				continue
			}
			if line.role == "" {
				return Identity{}, true, fmt.Errorf("mtls: the line %s:%s of --cert-map refuses it", line.kind, line.text)
			}
			id := Identity{line.role, value}
			if line.name != "" {
				id.Name = strings.ReplaceAll(line.name, "*", part)
			}
			if err := id.Check(); err != nil {
				return Identity{}, true, fmt.Errorf("by the line %s:%s of --cert-map: %w", line.kind, line.text, err)
			}
			return id, true, nil
		}
	}
	return Identity{}, false, nil
}

// fits tells whether a name of a certificate is what the line is about, and what
// the star stands for in it.
func (l mapLine) fits(value string) (star string, ok bool) {
	before, after, wild := strings.Cut(l.text, "*")
	if !wild {
		return "", value == l.text
	}
	star, ok = strings.CutPrefix(value, before)
	if ok {
		star, ok = strings.CutSuffix(star, after)
	}
	// A certificate for *.example.org is for many hosts, and so for none.
	return star, ok && star != "" && !strings.ContainsAny(star, "./*")
}
