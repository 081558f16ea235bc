package server

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"

	"github.com/rookery-mail/rookery/directory"
)

// A page token says after which name the next page begins, and of which question
// it is: base64 of
//
//	version 1 (1 octet) | CRC-32C of question and name (4, big endian) | name

const pageVersion = 1

// page returns the token that follows a page which ended with last; "" if that is
// empty, for then there is no next.
func page(last directory.MailboxName, question ...string) string {
	if last == "" {
		return ""
	}
	b := binary.BigEndian.AppendUint32([]byte{pageVersion}, pageSum(string(last), question))
	return base64.RawURLEncoding.EncodeToString(append(b, last...))
}

// openPage returns the name that a token carries; "" for an empty token.
func openPage(text string, question ...string) (directory.MailboxName, error) {
	if text == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 5 || b[0] != pageVersion {
		return "", fmt.Errorf("%w: that is no page token", errInvalidToken)
	}
	if binary.BigEndian.Uint32(b[1:]) != pageSum(string(b[5:]), question) {
		return "", fmt.Errorf("%w: the page token is of another question", errInvalidToken)
	}
	name, err := directory.ParseName(string(b[5:]))
	if err != nil {
		return "", fmt.Errorf("%w: %w", errInvalidToken, err)
	}
	return name, nil
}

func pageSum(last string, question []string) uint32 {
	return crc32.Checksum([]byte(strings.Join(question, "\x00")+"\x00"+last), castagnoli)
}

// pageSize is how many items to answer with; 0, the caller's choice of none, is
// kept.
func pageSize(asked uint32, most int) int { return int(min(int64(asked), int64(most))) }

// checkPrefix refuses what no canonical name can begin with.
func checkPrefix(prefix string) error {
	if len(prefix) > directory.MaxName {
		return fmt.Errorf("%w: a prefix of %d octets", directory.ErrTooLarge, len(prefix))
	}
	for i := range len(prefix) {
		if c := prefix[i]; c < 0x20 || c >= 0x7F {
			return fmt.Errorf("%w: prefix %q: octet %#x is of no name", directory.ErrInvalidName, prefix, c)
		}
	}
	return nil
}
