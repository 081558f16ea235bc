package directory

import (
	"encoding/base64"
	"strings"
	"unicode/utf16"
)

// Modified UTF-7 both ways, the plain way, to hold ParseName against.

var utf7Base64 = base64.NewEncoding("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,").WithPadding(base64.NoPadding)

func decodeUTF7(s string) (string, bool) {
	var b strings.Builder
	for s != "" {
		if s[0] != '&' {
			b.WriteByte(s[0])
			s = s[1:]
			continue
		}
		coded, rest, ok := strings.Cut(s[1:], "-")
		if !ok {
			return "", false
		}
		s = rest
		if coded == "" {
			b.WriteByte('&')
			continue
		}
		raw, err := utf7Base64.DecodeString(coded)
		if err != nil || len(raw)%2 != 0 {
			return "", false
		}
		units := make([]uint16, len(raw)/2)
		for i := range units {
			units[i] = uint16(raw[2*i])<<8 | uint16(raw[2*i+1])
		}
		b.WriteString(string(utf16.Decode(units)))
	}
	return b.String(), true
}

func encodeUTF7(s string) string {
	var b strings.Builder
	var run []uint16
	flush := func() {
		if run == nil {
			return
		}
		raw := make([]byte, 0, 2*len(run))
		for _, u := range run {
			raw = append(raw, byte(u>>8), byte(u))
		}
		b.WriteString("&" + utf7Base64.EncodeToString(raw) + "-")
		run = nil
	}
	for _, r := range s {
		if r >= 0x80 {
			run = utf16.AppendRune(run, r)
			continue
		}
		flush()
		b.WriteRune(r)
		if r == '&' {
			b.WriteByte('-')
		}
	}
	flush()
	return b.String()
}
