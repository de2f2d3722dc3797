#!/usr/bin/env bash
# How the figures that the benchmarks keep (name, lowest, median, highest) compare with what is wanted; a table, at once.
#
#   benches/summary.sh < target/bench/figures
set -euo pipefail
LC_ALL=C awk '
{ low[$1] = $2; mid[$1] = $3; high[$1] = $4 }
# What, the figure, whether it is to be at least or at most this, decimals; as 1 minus it where it is a share that is lost.
function row(what, name, is, bar, decimals, lost,    format, l, m, h, verdict) {
    format = "%." decimals "f"
    if (!(name in mid)) { printf "| %s | %s %s | not measured | |\n", what, is, bar; return }
    l = low[name]; m = mid[name]; h = high[name]
    if (lost) { m = 100 * (1 - m); l = 100 * (1 - high[name]); h = 100 * (1 - low[name]); bar = bar " %" }
    verdict = (is == "≥" ? m >= bar + 0 : m <= bar + 0) ? "met" : "**not met**"
    printf "| %s | %s %s | " format ", **" format "**, " format "%s | %s |\n", what, is, bar, l, m, h, lost ? " %" : "", verdict
}
END {
    print "| wanted | | measured (lowest, median, highest) | |"
    print "|---|---|---|---|"
    row("coupons/s to the bare insert, 1 series a request", "service.1.to_bare", "≥", 1.5, 2)
    row("… 2 series", "service.2.to_bare", "≥", "2.0", 2)
    row("… 10 series", "service.10.to_bare", "≥", 3.5, 2)
    row("coupons/s to the plain way, 1 series a request", "service.1.to_plain", "≥", 5, 2)
    row("… 2 series", "service.2.to_plain", "≥", 6, 2)
    row("… 10 series", "service.10.to_plain", "≥", 10, 2)
    row("one hot series with a cap to ten without", "kind.capped.to_many", "≥", 0.7, 2)
    row("what a token costs more than Basic, both warm", "kind.token.to_basic", "≤", 5, 1, 1)
    row("what an Idempotency-Key costs", "kind.keyed.to_basic", "≤", 15, 1, 1)
    row("a single client, p50 to the plain way", "single.service.to_plain", "≤", 1.1, 2)
    row("p99 / p50 at half of the peak rate", "latency.service.50.p99.to_p50", "≤", 4, 2)
    row("throughput with ten million coupons stored to none", "growth.stored10.to_none", "≥", 0.85, 2)
    row("memory at a thousand connections under load (MiB)", "cost.memory.thousand", "≤", 64, 0)
    row("table and indexes per coupon (bytes)", "cost.service1.stored", "≤", 300, 0)
    row("… of a keyed request that resends another, with its record", "keyed.stored", "≤", 450, 0)
}'
