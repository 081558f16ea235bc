package main

import (
	"image/color"
	"math"
	"os"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// palette tells lines apart, also for those who see few colours (Okabe, Ito).
var palette = []color.Color{
	color.RGBA{0, 114, 178, 255}, color.RGBA{213, 94, 0, 255}, color.RGBA{0, 158, 115, 255}, color.RGBA{204, 121, 167, 255},
	color.RGBA{230, 159, 0, 255}, color.RGBA{86, 180, 233, 255}, color.RGBA{0, 0, 0, 255}, color.RGBA{150, 150, 150, 255},
}

// plot draws the report: for each population one row, the latencies of the open
// loops (of the closed ones where there is none) on the left, the rates beside
// those of the ceilings on the right.
func (r *report) plot(file string) error {
	var rows [][]*plot.Plot
	for _, p := range r.Populations {
		if len(p.Loads) == 0 {
			continue
		}
		latencies, err := p.latencyPlot()
		if err != nil {
			return err
		}
		rates, err := p.ratePlot()
		if err != nil {
			return err
		}
		rows = append(rows, []*plot.Plot{latencies, rates})
	}
	height := vg.Length(max(1, len(rows))) * 11 * vg.Centimeter
	canvas := vgsvg.New(34*vg.Centimeter, height)
	if len(rows) > 0 {
		tiles := draw.Tiles{Rows: len(rows), Cols: 2, PadX: vg.Centimeter, PadY: vg.Centimeter, PadTop: 4, PadBottom: 4, PadLeft: 4, PadRight: 4}
		canvases := plot.Align(rows, tiles, draw.New(canvas))
		for i := range rows {
			for j := range rows[i] {
				rows[i][j].Draw(canvases[i][j])
			}
		}
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := canvas.WriteTo(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// latencyPlot draws latency over percentile, the axis stretched towards 100 so
// that each nine has as much room as the one before.
func (p *populationReport) latencyPlot() (*plot.Plot, error) {
	out := plot.New()
	out.Title.Text = formatSize(p.Mailboxes) + " mailboxes: latency"
	out.X.Label.Text = "percentile"
	out.Y.Label.Text = "milliseconds"
	out.Y.Scale = plot.LogScale{}
	out.Y.Tick.Marker = plot.LogTicks{Prec: -1}
	out.X.Tick.Marker = plot.ConstantTicks(percentileTicks())
	out.Legend.TextStyle.Font.Size = vg.Points(9)
	for i, l := range p.Loads {
		f, name := l.Measured, l.Workload
		if l.Open != nil {
			f, name = *l.Open, l.Workload+", "+strconv.FormatFloat(l.Open.Offered, 'f', 0, 64)+"/s offered"
		}
		points := make(plotter.XYs, 0, len(f.Latency.Curve))
		for j, us := range f.Latency.Curve {
			points = append(points, plotter.XY{X: nines(quantiles[j]), Y: float64(max(us, 1)) / 1000})
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return nil, err
		}
		line.Color = palette[i%len(palette)]
		line.Width = vg.Points(1.5)
		out.Add(line)
		out.Legend.Add(name, line)
	}
	out.Add(plotter.NewGrid())
	// Whole decades: a logarithmic axis has no room below zero, and none for values
	// that are all the same. One more below is for the legend.
	out.Y.Min = math.Pow10(int(math.Floor(math.Log10(out.Y.Min))) - 1)
	out.Y.Max = max(10*out.Y.Min, math.Pow10(int(math.Ceil(math.Log10(out.Y.Max)))))
	return out, nil
}

// nines is where a percentile stands: 0 at 0, 1 at 90, 2 at 99 ...
func nines(percentile float64) float64 { return -math.Log10(1 - percentile/100) }

func percentileTicks() []plot.Tick {
	var ticks []plot.Tick
	for _, q := range []float64{0, 50, 90, 99, 99.9, 99.99, 99.999} {
		ticks = append(ticks, plot.Tick{Value: nines(q), Label: strconv.FormatFloat(q, 'f', -1, 64)})
	}
	return ticks
}

// ratePlot draws what was measured and its echo side by side, in calls a second.
func (p *populationReport) ratePlot() (*plot.Plot, error) {
	out := plot.New()
	out.Title.Text = formatSize(p.Mailboxes) + " mailboxes: calls a second"
	out.Y.Min = 0
	out.Y.Tick.Marker = plot.TickerFunc(wholeTicks)
	out.Legend.Top = true
	var names []string
	var measured, echoed plotter.Values
	for _, l := range p.Loads {
		names = append(names, l.Workload)
		measured = append(measured, l.Measured.Rate)
		rate := 0.0
		for _, b := range l.Beside {
			if b.Name == systemEcho {
				rate = b.Rate
			}
		}
		echoed = append(echoed, rate)
	}
	const width = 14 // points
	for i, values := range []plotter.Values{measured, echoed} {
		bars, err := plotter.NewBarChart(values, vg.Points(width))
		if err != nil {
			return nil, err
		}
		bars.Color = palette[i]
		bars.LineStyle.Width = 0
		bars.Offset = vg.Points(width * (float64(i) - 0.5))
		out.Add(bars)
		out.Legend.Add([]string{systemRookery, systemEcho}[i], bars)
	}
	out.Y.Max *= 1.15 // for the legend
	out.NominalX(names...)
	out.X.Tick.Label.Rotation = math.Pi / 6
	out.X.Tick.Label.XAlign = draw.XRight
	return out, nil
}

// wholeTicks are the usual ticks, labelled without decimals.
func wholeTicks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i := range ticks {
		if ticks[i].Label != "" {
			ticks[i].Label = strconv.FormatFloat(ticks[i].Value, 'f', 0, 64)
		}
	}
	return ticks
}
