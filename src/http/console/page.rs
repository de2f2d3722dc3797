//! `maud` escapes every value. The script refreshes the part below `#live`.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart;
use super::filter::{Filter, format_cursor};
use super::format::{day, instant, minute, number, reason, second, several, truncate};
use crate::activity::{HOUR, Overview, PAGE, RecentFailure, SeriesActivity, SeriesCursor};
use crate::http::paths::CONSOLE;
use crate::issuance::Refusal;

pub(super) const STYLE: &str = include_str!("console.css");
pub(super) const SCRIPT: &str = include_str!("console.js");

/// A ticket. Without it the browser would request `/favicon.ico`.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath fill='%230a5cc2' d='M1 3h14v3a2 2 0 000 4v3H1v-3a2 2 0 000-4z'/%3E%3C/svg%3E";

pub(super) fn page(overview: &Overview, filter: &Filter) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { "Coupons · " (truncate(&overview.organisation)) }
                link rel="icon" href=(ICON);
                style { (PreEscaped(STYLE)) }
            }
            body {
                a class="skip" href="#live" { "Skip to the numbers" }
                header {
                    div {
                        p class="what" { "Coupon console" }
                        h1 { bdi { (truncate(&overview.organisation)) } }
                    }
                    div class="updates" {
                        p id="state" role="status" {}
                        button id="pause" type="button" hidden { "Pause updates" }
                    }
                }
                (search(filter))
                main id="live" tabindex="-1" {
                    (moment(overview))
                    (tiles(overview))
                    (last_hour(overview))
                    (series(overview, filter))
                    (refusals(overview))
                    (failures(overview, filter))
                }
                (foot(overview))
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

fn search(filter: &Filter) -> Markup {
    html! {
        search {
            form action=(CONSOLE) method="get" aria-label="Find" {
                div {
                    label for="series" { "Series id" }
                    input id="series" name="series" inputmode="numeric" autocomplete="off" placeholder="101, 102" value=(filter.series)
                        aria-invalid=[filter.mistake.as_ref().map(|_| "true")] aria-describedby=[filter.mistake.as_ref().map(|_| "mistake")];
                }
                div {
                    label for="request" { "Request id of a failure" }
                    input id="request" name="request" autocomplete="off" value=(filter.request);
                }
                button type="submit" { "Find" }
                @if filter.is_active() || filter.mistake.is_some() || filter.cursor != SeriesCursor::First {
                    a href=(CONSOLE) { "Show all" }
                }
            }
            @if let Some(mistake) = &filter.mistake {
                p id="mistake" class="mistake" role="alert" { (mistake) }
            }
        }
    }
}

fn moment(overview: &Overview) -> Markup {
    html! {
        p class="moment" {
            "As of "
            time datetime=(instant(overview.now)) { (second(overview.now, &overview.zone)) }
            " " (overview.zone.iana_name().unwrap_or_default())
        }
    }
}

fn tiles(overview: &Overview) -> Markup {
    let last_hour = |name: &str| {
        let count = overview.outcomes.iter().find(|count| count.outcome == name);
        count.map_or(0, |count| count.last_hour)
    };
    let refused: i64 = overview.refused.iter().sum();
    let tile = |name: &str, count: i64, note: &str| {
        html! { div { dt { (name) } dd { span class="big" { (number(count)) } span class="note" { (note) } } } }
    };
    html! {
        section aria-labelledby="tiles" {
            h2 id="tiles" class="unseen" { "The last hour in numbers" }
            dl class="tiles" {
                (tile("Issued", last_hour("issued"), "in the last hour"))
                (tile("Issued", overview.issued[HOUR - 2], "in the last full minute"))
                (tile("Refused", refused, "in the last hour"))
                (tile("Resent", last_hour("resent"), "held already, shown again"))
                (tile("Replayed", last_hour("replayed"), "the same request again"))
            }
        }
    }
}

fn last_hour(overview: &Overview) -> Markup {
    let all = overview.issued.iter().zip(&overview.refused).map(|(issued, refused)| issued + refused);
    let top = chart::top(all.max().unwrap_or(0));
    let at = |index: usize| {
        let minutes = jiff::SignedDuration::from_mins(i64::try_from(index).unwrap_or(0));
        minute(overview.first_minute.saturating_add(minutes).unwrap_or(overview.first_minute), &overview.zone)
    };
    html! {
        section class="card" aria-labelledby="hour" {
            h2 id="hour" { "Per minute, last hour" }
            figure {
                figcaption id="chart-words" { (chart_words(overview, &at)) }
                p class="legend" aria-hidden="true" {
                    span class="issued" { "issued" } span class="refused" { "refused" }
                }
                div class="chart" {
                    div class="scale" aria-hidden="true" {
                        span { (number(top)) } span { (number(top / 2)) } span { "0" }
                    }
                    (chart::hour(&overview.issued, &overview.refused, top))
                    div class="clock" aria-hidden="true" {
                        span { (at(0)) } span { (at(HOUR / 2)) } span { "now" }
                    }
                }
            }
            (minute_table(overview, &at))
        }
    }
}

fn minute_table(overview: &Overview, at: &dyn Fn(usize) -> String) -> Markup {
    html! {
        details id="minutes" {
            summary { "The same as a table" }
            div class="scroll" role="region" tabindex="0" aria-label="Table of the last hour" {
                table {
                    caption class="unseen" { "Coupons issued and refused in each minute of the last hour" }
                    thead { tr { th scope="col" { "Minute" } th scope="col" { "Issued" } th scope="col" { "Refused" } } }
                    tbody {
                        @for index in (0..HOUR).rev() {
                            tr {
                                th scope="row" { (at(index)) }
                                td { (number(overview.issued[index])) }
                                td { (number(overview.refused[index])) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The chart in words.
fn chart_words(overview: &Overview, at: &dyn Fn(usize) -> String) -> String {
    let issued: i64 = overview.issued.iter().sum();
    let refused: i64 = overview.refused.iter().sum();
    if issued + refused == 0 {
        return "Nobody asked for a coupon in the last hour.".to_owned();
    }
    let highest = overview.issued.iter().enumerate().rev().max_by_key(|(_, count)| **count);
    let highest = highest.filter(|(_, count)| **count > 0);
    let peak = highest.map(|(index, count)| format!(", most of them at {} ({})", at(index), number(*count)));
    format!("{} issued{}; {} refused.", several(issued, "coupon"), peak.unwrap_or_default(), number(refused))
}

fn series(overview: &Overview, filter: &Filter) -> Markup {
    let order = if filter.series_ids.is_empty() {
        format!("The most recently requested first, {PAGE} per page.")
    } else {
        "The series that you asked for.".to_owned()
    };
    html! {
        section class="card" aria-labelledby="all-series" {
            h2 id="all-series" { "Series" }
            @for id in &overview.unknown {
                p class="mistake" { "There is no series " (id.0) "." }
            }
            @if overview.series.is_empty() {
                p { @if filter.cursor == SeriesCursor::First { "No series to show." } @else { "No more series." } }
            } @else {
                table class="cards" role="table" {
                    caption { (order) }
                    thead role="rowgroup" {
                        tr role="row" {
                            @for head in ["Series", "Issued", "Remaining", "Resent", "Issued last hour", "Refused"] {
                                th scope="col" role="columnheader" { (head) }
                            }
                        }
                    }
                    tbody role="rowgroup" { @for series in &overview.series { (series_row(series, overview)) } }
                }
            }
            @if filter.cursor != SeriesCursor::First || overview.next.is_some() {
                nav class="pages" aria-label="Pages of series" {
                    @if filter.cursor != SeriesCursor::First { a id="first" href=(CONSOLE) { "First page" } }
                    @if let Some(next) = overview.next { a id="next" href={ (CONSOLE) "?after=" (format_cursor(next)) } { "Next page" } }
                }
            }
        }
    }
}

fn series_row(series: &SeriesActivity, overview: &Overview) -> Markup {
    let last_hour: i64 = series.per_minute.iter().sum();
    let is_expired = overview.now.to_zoned(overview.zone.clone()).date() > series.valid_till_date;
    html! {
        tr role="row" {
            th scope="row" role="rowheader" {
                a id={ "series-" (series.id.0) } href={ (CONSOLE) "?series=" (series.id.0) } { (series.id.0) }
                " " bdi class="description" { (truncate(&series.description)) }
                @if is_expired { " " span class="badge" { "expired " (series.valid_till_date) } }
                @if series.externally_managed { " " span class="badge" { "issued by another system" } }
            }
            td role="cell" data-label="Issued" {
                div {
                    (number(series.issued))
                    @if let Some(cap) = series.cap {
                        span class="note" { "of " (number(cap)) }
                        (chart::share(series.issued, cap))
                    } @else if let Some(since) = series.since {
                        span class="note" { "since " (day(since, &overview.zone)) }
                    }
                }
            }
            td role="cell" data-label="Remaining" { div { (remaining(series)) } }
            td role="cell" data-label="Resent" {
                div {
                    (number(series.resent))
                    @if series.replayed > 0 { span class="note" { "and " (number(series.replayed)) " replayed" } }
                }
            }
            td role="cell" data-label="Issued last hour" { div { (number(last_hour)) (chart::spark(&series.per_minute)) } }
            td role="cell" data-label="Refused" { div { (refused(series)) } }
        }
    }
}

fn remaining(series: &SeriesActivity) -> Markup {
    let Some(remaining) = series.remaining() else { return html! { span class="note" { "no limit" } } };
    html! {
        @if remaining == 0 {
            strong class="none" { "none left" }
        } @else {
            @if series.remaining_is_about() { "about " }
            (number(remaining))
        }
        @if let Some(pool) = &series.pool {
            span class="note" {
                @if pool.remaining_for_one > 0 {
                    "uploaded codes, " @if pool.are_more_for_one { "over " } (number(pool.remaining_for_one)) " for one customer each"
                } @else {
                    "uploaded codes"
                }
            }
        }
    }
}

fn refused(series: &SeriesActivity) -> Markup {
    let total: i64 = series.refused.iter().map(|(_, count)| count).sum();
    html! {
        (number(total))
        @if total > 0 {
            ul class="reasons" {
                @for (name, count) in &series.refused {
                    @let reason = reason(name);
                    li { b { (reason.code) } " " (reason.meaning) " " span class="times" { "× " (number(*count)) } }
                }
            }
        }
    }
}

fn refusals(overview: &Overview) -> Markup {
    let refusals =
        || overview.outcomes.iter().filter(|count| !["issued", "resent", "replayed"].contains(&&*count.outcome));
    html! {
        section class="card" aria-labelledby="refusals" {
            h2 id="refusals" { "Refusals by reason" }
            @if refusals().next().is_none() {
                p { "Nothing was refused." }
            } @else {
                table class="cards" role="table" {
                    caption { "For the whole organisation, the most frequent of the last hour first." }
                    thead role="rowgroup" {
                        tr role="row" {
                            @for head in ["Code", "Meaning", "Message to the caller", "Last hour", "Total"] {
                                th scope="col" role="columnheader" { (head) }
                            }
                        }
                    }
                    tbody role="rowgroup" {
                        @for count in refusals() {
                            @let reason = reason(&count.outcome);
                            tr role="row" {
                                th scope="row" role="rowheader" { (reason.code) }
                                td role="cell" class="text" data-label="Meaning" { div { (reason.meaning) } }
                                td role="cell" class="text" data-label="Message" { div { (reason.message) } }
                                td role="cell" data-label="Last hour" { div { (number(count.last_hour)) } }
                                td role="cell" data-label="Total" { div { (number(count.total)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The failures, grouped by request.
fn failures(overview: &Overview, filter: &Filter) -> Markup {
    let requests = overview.failures.chunk_by(|a, b| (a.at, &a.request_id) == (b.at, &b.request_id));
    html! {
        section class="card" aria-labelledby="failures" {
            h2 id="failures" { "Recent failures" }
            @if overview.failures.is_empty() {
                p { @if filter.is_active() { "None in the list of recent failures; the log has all failures." } @else { "None." } }
            } @else {
                table class="cards" role="table" {
                    caption { "The newest " (overview.failures.len()) @if filter.is_active() { " that match" } ", by request." }
                    thead role="rowgroup" {
                        tr role="row" {
                            @for head in ["Time", "Request id", "Caller", "Series, code and message to the caller"] {
                                th scope="col" role="columnheader" { (head) }
                            }
                        }
                    }
                    tbody role="rowgroup" { @for request in requests { (request_row(request, overview)) } }
                }
            }
        }
    }
}

fn request_row(failures: &[RecentFailure], overview: &Overview) -> Markup {
    let Some(first) = failures.first() else { return Markup::default() };
    html! {
        tr role="row" {
            th scope="row" role="rowheader" {
                time datetime=(instant(first.at)) { (second(first.at, &overview.zone)) }
            }
            td role="cell" data-label="Request id" { div { code { (first.request_id) } } }
            td role="cell" class="text" data-label="Caller" { div { (caller(first)) } }
            td role="cell" {
                ul class="reasons" {
                    // `failures` has the newest first.
                    @for failure in failures.iter().rev() {
                        @let reason = reason(&failure.outcome);
                        li { (failure.series_id.0) " " b { (reason.code) } " " (reason.message) }
                    }
                }
            }
        }
    }
}

/// The OAuth client, the till and the store of a failed request.
fn caller(failure: &RecentFailure) -> String {
    let client = failure.client_key.as_ref().map(|key| format!("client {key}"));
    let till = failure.till_id.as_ref().map(|id| format!("till {id}"));
    let store = Some(format!("store {}", failure.store_id.0));
    [client, till, store].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn foot(overview: &Overview) -> Markup {
    let missing = Refusal::UnknownSeries;
    html! {
        footer {
            p {
                "The issued and remaining coupons of a series with a cap, and the remaining codes of a pool, are the database's own count \
                 (approximate for a pool with more than a thousand codes). Each replica counts everything else and adds it every few \
                 seconds: these numbers may be some seconds old, and a crash loses the last seconds. No coupon depends on them."
                @if let Some(since) = overview.since { " Counted since " (second(since, &overview.zone)) "." }
            }
            p {
                "Series that do not exist (" (missing.code()) ") count only for the organisation. The list of failures has about the \
                 newest thousand of the last hours: each replica adds at most 20 a second, and 10 of one organisation, but counts all. \
                 Requests that fail as a whole (400, 401, 403, 429, 503) are in the log and the metrics."
            }
        }
    }
}
