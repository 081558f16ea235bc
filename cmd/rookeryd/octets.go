package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// octets is a size as people write it: a number, with KiB, MiB, GiB or TiB.
type octets int64

var octetUnits = []struct {
	name string
	size int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// String implements flag.Value.
func (o *octets) String() string {
	for _, u := range octetUnits {
		if n := int64(*o); n >= u.size && n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(*o), 10)
}

// Set implements flag.Value.
func (o *octets) Set(s string) error {
	unit := int64(1)
	for _, u := range octetUnits {
		if rest, ok := strings.CutSuffix(s, u.name); ok {
			s, unit = rest, u.size
			break
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("a size is a number of octets, or with KiB, MiB, GiB or TiB, as 128MiB")
	}
	*o = octets(n * unit)
	return nil
}
