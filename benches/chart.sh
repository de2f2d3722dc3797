#!/usr/bin/env bash
# Draws the figures of the benchmarks (name, lowest, median, highest) as SVG with gnuplot: throughput by series per request, and
# latency by load. The background is transparent, and all colours are legible in light and dark mode.
#
#   benches/chart.sh benches/figures > benches/chart.svg
set -euo pipefail
figures=$1
data=$(mktemp -d "${TMPDIR:-/tmp}/coupon-issuer-chart.XXXXXX")
trap 'rm -rf "$data"' EXIT

figure() { awk -v name="$1" '$1 == name { print $2, $3, $4 }' "$figures"; } # name: lowest, median, highest
median() { figure "$1" | cut -d ' ' -f 2; }
for target in service baseline; do
    for count in 1 2 10 50; do echo "$count $(figure "$target.$count")"; done > "$data/$target.throughput"
    for percent in 25 50 75; do
        latency=latency.$target.$percent
        echo "$(median "$latency.rate") $(median "$latency.p50") $(median "$latency.p99")"
    done > "$data/$target.latency"
done

gnuplot <<GNUPLOT
set terminal svg size 1180,400 dynamic font "system-ui, sans-serif,14" name "chart"
set multiplot layout 1,2
grey = "#777777"; blue = "#3b82f6"; orange = "#e8710a"; green = "#2f9e55"
set border 3 linecolor rgb grey
set tics nomirror textcolor rgb grey
set grid ytics linecolor rgb grey linewidth 0.4
set key top left textcolor rgb grey
set xlabel textcolor rgb grey
set ylabel textcolor rgb grey

set title "Coupons per second: higher is better" textcolor rgb grey
set xlabel "series per request (logarithmic)"
set ylabel "thousand coupons per second"
set logscale x
set xrange [0.8:60]
set yrange [0:80]
set xtics (1, 2, 10, 50)
plot "$data/service.throughput" using 1:(\$3/1000):(\$2/1000):(\$4/1000) with yerrorlines lc rgb blue lw 2 pt 7 ps 0.6 title "this service", \
     $(median bare)/1000. with lines lc rgb green lw 2 dt 2 title "bare insert", \
     "$data/baseline.throughput" using 1:(\$3/1000):(\$2/1000):(\$4/1000) with yerrorlines lc rgb orange lw 2 pt 7 ps 0.6 title "baseline"

set title "Latency: lower is better"
set xlabel "requests per second"
set ylabel "milliseconds (logarithmic)"
unset logscale x
set logscale y
set xrange [0:*]
set yrange [1:100]
set xtics 0,2500
set key top right
plot "$data/service.latency" using 1:3 with linespoints lc rgb blue lw 2 dt 2 pt 7 ps 0.6 title "this service, p99", \
     "$data/service.latency" using 1:2 with linespoints lc rgb blue lw 2 pt 7 ps 0.6 title "this service, p50", \
     "$data/baseline.latency" using 1:3 with linespoints lc rgb orange lw 2 dt 2 pt 7 ps 0.6 title "baseline, p99", \
     "$data/baseline.latency" using 1:2 with linespoints lc rgb orange lw 2 pt 7 ps 0.6 title "baseline, p50"
GNUPLOT
