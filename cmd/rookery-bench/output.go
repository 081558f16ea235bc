package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// print writes the report in one of formats.
func (r *report) print(out io.Writer, format string) error {
	if format == "json" {
		return r.encode(out)
	}
	m := r.Machine
	fmt.Fprintf(out, "rookery-bench %s, %s: %d x %s, %s, %s, Linux %s, load %s before it, %s; %d rounds of %gs, %d connections\n",
		r.Version, r.Begun.Format("2006-01-02 15:04 MST"), m.CPUs, m.CPU, m.Memory, m.Disk, m.Kernel, m.Load, m.Go, r.Rounds, r.Seconds, r.Connections)
	for _, t := range r.tables() {
		if format == "markdown" {
			t.printMarkdown(out)
		} else {
			t.print(out)
		}
	}
	return nil
}

func (r *report) encode(out io.Writer) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// save writes what was asked for into files.
func (r *report) save(jsonFile, plotFile string) error {
	if jsonFile != "" {
		f, err := os.Create(jsonFile)
		if err != nil {
			return err
		}
		if err := r.encode(f); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	if plotFile != "" {
		return r.plot(plotFile)
	}
	return nil
}

// readReport reads what encode wrote.
func readReport(file string) (*report, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := new(report)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%s is no report of rookery-bench: %w", file, err)
	}
	return r, nil
}
