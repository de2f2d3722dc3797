#!/usr/bin/env bash
# Draws the figures that the benchmarks keep (name, lowest, median, highest) as SVG, in colours that can be read on white and on
# dark: throughput by series a request, and latency by load; at once.
#
#   benches/chart.sh < target/bench/figures > benches/chart.svg
set -euo pipefail
LC_ALL=C awk '
{ low[$1] = $2; mid[$1] = $3; high[$1] = $4 }

function text(x, y, anchor, colour, size, what) {
    printf "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"%s\" font-size=\"%d\">%s</text>\n", x, y, anchor, colour, size, what
}
function line(x1, y1, x2, y2, colour, width, dash) {
    printf "<path d=\"M%.1f %.1fL%.1f %.1f\" stroke=\"%s\" stroke-width=\"%s\"%s/>\n", x1, y1, x2, y2, colour, width,
        dash ? " stroke-dasharray=\"" dash "\"" : ""
}
function dot(x, y, colour) { printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" fill=\"%s\"/>\n", x, y, colour }
# The panel that is drawn: its left edge. All are as wide and as high.
function frame(at, title, x_label, y_label) {
    left = at; right = at + 350; top = 60; bottom = 310
    text((left + right) / 2, 28, "middle", grey, 17, title)
    text((left + right) / 2, bottom + 46, "middle", grey, 14, x_label)
    printf "<text transform=\"translate(%.1f %.1f) rotate(-90)\" text-anchor=\"middle\" fill=\"%s\" font-size=\"14\">%s</text>\n",
        left - 48, (top + bottom) / 2, grey, y_label
    line(left, bottom, right, bottom, grey, 1.5)
}
function step_of(most,    step) { # a round one, so that there are four to ten of them
    step = 10 ^ floor(log(most) / log(10))
    return most / step >= 4 ? step : most / step >= 2 ? step / 2 : step / 4
}
# Labels beside the ends of lines: kept until all are known, and written so that none is over another.
function label(x, y, colour, what) { labels++; label_x[labels] = x; label_y[labels] = y; label_colour[labels] = colour; label_text[labels] = what }
function write_labels(    i, last, lowest) { # from the lowest up
    for (last = 1e9; labels > 0; labels--) {
        lowest = 1
        for (i = 2; i <= labels; i++) if (label_y[i] > label_y[lowest]) lowest = i
        last = label_y[lowest] < last - 16 ? label_y[lowest] : last - 16
        text(label_x[lowest], last + 5, "start", label_colour[lowest], 14, label_text[lowest])
        label_x[lowest] = label_x[labels]; label_y[lowest] = label_y[labels]
        label_colour[lowest] = label_colour[labels]; label_text[lowest] = label_text[labels]
    }
}
function max(a, b) { return a > b ? a : b }

function throughput(    count, i, step, value, most, name, who, x, y, from_x, from_y, n) {
    frame(80, "Coupons per second: higher is better", "series per request (logarithmic)", "thousand coupons per second")
    n = split("1 2 10 50", count, " ")
    most = high["bare"]
    for (i = 1; i <= n; i++) most = max(most, high["service." count[i]])
    step = step_of(most)
    for (value = 0; value <= most + step / 2; value += step) {
        y = bottom - (bottom - top) * value / (most + step / 2)
        line(left, y, right, y, grey, 0.4)
        text(left - 8, y + 5, "end", grey, 13, value / 1000)
    }
    y = bottom - (bottom - top) * mid["bare"] / (most + step / 2)
    line(left, y, right, y, green, 2, "7 5")
    label(right + 8, y, green, "bare insert")
    for (i = 1; i <= n; i++) text(left + 20 + (right - left - 30) * log(count[i]) / log(50), bottom + 20, "middle", grey, 13, count[i])
    for (who in colour) {
        for (i = 1; i <= n; i++) {
            name = who "." count[i]
            x = left + 20 + (right - left - 30) * log(count[i]) / log(50)
            y = bottom - (bottom - top) * mid[name] / (most + step / 2)
            line(x, bottom - (bottom - top) * low[name] / (most + step / 2), x, bottom - (bottom - top) * high[name] / (most + step / 2), colour[who], 1.5)
            dot(x, y, colour[who])
            if (i > 1) line(from_x, from_y, x, y, colour[who], 2.5)
            from_x = x; from_y = y
        }
        label(right + 8, y, colour[who], title[who])
    }
    write_labels()
}

function height(ms) { return bottom - (bottom - top) * (log(ms) - log(least)) / (log(most_ms) - log(least)) }
function latency(    who, figure, percent, i, j, most, step, value, x, y, from_x, from_y, name, f) {
    frame(670, "Latency: lower is better", "requests per second", "milliseconds (logarithmic)")
    split("p50 p99", figure, " "); split("25 50 75", percent, " ")
    least = 1e9; most_ms = 0; most = 0
    for (who in colour) for (i = 1; i <= 3; i++) for (j = 1; j <= 2; j++) {
        value = mid["latency." who "." percent[i] "." figure[j]]
        if (value < least) least = value
        most_ms = max(most_ms, value)
        most = max(most, mid["peak." who] * percent[i] / 100)
    }
    least = 10 ^ floor(log(least) / log(10)); most_ms = 10 ^ -floor(-log(most_ms) / log(10))
    for (value = least; value <= most_ms * 1.01; value *= 10) {
        line(left, height(value), right, height(value), grey, 0.4)
        text(left - 8, height(value) + 5, "end", grey, 13, value)
    }
    step = step_of(most)
    for (value = 0; value <= most * 1.02; value += step) text(left + (right - left) * value / (most * 1.05), bottom + 20, "middle", grey, 13, value)
    for (who in colour) for (j = 1; j <= 2; j++) {
        for (i = 1; i <= 3; i++) {
            name = "latency." who "." percent[i] "." figure[j]
            x = left + (right - left) * mid["peak." who] * percent[i] / 100 / (most * 1.05)
            y = height(mid[name])
            dot(x, y, colour[who])
            if (i > 1) line(from_x, from_y, x, y, colour[who], 2.5, dash[j])
            from_x = x; from_y = y
        }
        label(x + 9, y, colour[who], figure[j])
        if (j == 2) write_labels()
    }
    x = left + 80
    for (who in colour) {
        dot(x, top - 14, colour[who])
        text(x + 10, top - 9, "start", colour[who], 14, title[who])
        x += 120
    }
}
function floor(x) { return x < int(x) ? int(x) - 1 : int(x) }

BEGIN {
    grey = "#777777"; green = "#2f9e55"
    colour["service"] = "#3b82f6"; colour["plain"] = "#e8710a"
    title["service"] = "this service"; title["plain"] = "the plain way"
    dash[2] = "7 4"
}
END {
    print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1180 370\" font-family=\"system-ui, sans-serif\" fill=\"none\" role=\"img\">"
    print "<title>Throughput of this service, the plain way and a bare insert by series per request; latency by load</title>"
    throughput()
    latency()
    print "</svg>"
}'
