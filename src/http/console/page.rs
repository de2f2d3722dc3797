//! The page itself. Whatever comes from outside is put in as a value, and so escaped; nothing is put in as markup.
//! What of it is asked for again while it is open is below `live`.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::words::{cut, day, instant, minute, number, reason, second, several};
use super::{Asked, PATH, SCRIPT, STYLE, chart, told};
use crate::activity::{HOUR, Overview, PAGE, Place, SeriesActivity, ToldFailure};
use crate::issuance::Refusal;

/// A sheet with a hole at its side, in place of a file that the browser would ask for.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath fill='%230a5cc2' d='M1 3h14v3a2 2 0 000 4v3H1v-3a2 2 0 000-4z'/%3E%3C/svg%3E";

pub(super) fn page(overview: &Overview, asked: &Asked) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { "Coupons · " (cut(&overview.organisation)) }
                link rel="icon" href=(ICON);
                style { (PreEscaped(STYLE)) }
            }
            body {
                a class="skip" href="#live" { "Skip to the numbers" }
                header {
                    div {
                        p class="what" { "Coupon console" }
                        h1 { bdi { (cut(&overview.organisation)) } }
                    }
                    div class="updates" {
                        p id="state" role="status" {}
                        button id="pause" type="button" hidden { "Pause updates" }
                    }
                }
                (search(asked))
                main id="live" tabindex="-1" {
                    (moment(overview))
                    (tiles(overview))
                    (last_hour(overview))
                    (series(overview, asked))
                    (refusals(overview))
                    (failures(overview, asked))
                }
                (foot(overview))
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

fn search(asked: &Asked) -> Markup {
    html! {
        search {
            form action=(PATH) method="get" aria-label="Find" {
                div {
                    label for="series" { "Series id" }
                    input id="series" name="series" inputmode="numeric" autocomplete="off" placeholder="101, 102" value=(asked.series)
                        aria-invalid=[asked.mistake.as_ref().map(|_| "true")] aria-describedby=[asked.mistake.as_ref().map(|_| "mistake")];
                }
                div {
                    label for="request" { "Request id of a failure" }
                    input id="request" name="request" autocomplete="off" value=(asked.request);
                }
                button type="submit" { "Find" }
                @if asked.is_narrow() || asked.mistake.is_some() || asked.place != Place::First {
                    a href=(PATH) { "Show all" }
                }
            }
            @if let Some(mistake) = &asked.mistake {
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
    let of = |name: &str| overview.outcomes.iter().find(|one| one.outcome == name).map_or(0, |one| one.last_hour);
    let refused: i64 = overview.refused.iter().sum();
    let tile = |name: &str, count: i64, note: &str| {
        html! { div { dt { (name) } dd { span class="big" { (number(count)) } span class="note" { (note) } } } }
    };
    html! {
        section aria-labelledby="tiles" {
            h2 id="tiles" class="unseen" { "The last hour in numbers" }
            dl class="tiles" {
                (tile("Issued", of("issued"), "in the last hour"))
                (tile("Issued", overview.issued[HOUR - 2], "in the last full minute"))
                (tile("Refused", refused, "in the last hour"))
                (tile("Resent", of("resent"), "held already, shown again"))
                (tile("Replayed", of("replayed"), "the same request again"))
            }
        }
    }
}

fn last_hour(overview: &Overview) -> Markup {
    let all = overview.issued.iter().zip(&overview.refused).map(|(issued, refused)| issued + refused);
    let top = chart::top(all.max().unwrap_or(0));
    let at = |place: usize| {
        let minutes = jiff::SignedDuration::from_mins(i64::try_from(place).unwrap_or(0));
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
            details id="minutes" {
                summary { "The same as a table" }
                div class="scroll" role="region" tabindex="0" aria-label="Table of the last hour" {
                    table {
                        caption class="unseen" { "Coupons issued and refused in each minute of the last hour" }
                        thead { tr { th scope="col" { "Minute" } th scope="col" { "Issued" } th scope="col" { "Refused" } } }
                        tbody {
                            @for place in (0..HOUR).rev() {
                                tr {
                                    th scope="row" { (at(place)) }
                                    td { (number(overview.issued[place])) }
                                    td { (number(overview.refused[place])) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// What the chart shows, for those who do not see it and for those who do.
fn chart_words(overview: &Overview, at: &dyn Fn(usize) -> String) -> String {
    let issued: i64 = overview.issued.iter().sum();
    let refused: i64 = overview.refused.iter().sum();
    if issued + refused == 0 {
        return "Nobody asked for a coupon in the last hour.".to_owned();
    }
    let highest = overview.issued.iter().enumerate().rev().max_by_key(|(_, count)| **count);
    let highest = highest.filter(|(_, count)| **count > 0);
    let most = highest.map(|(place, count)| format!(", most of them at {} ({})", at(place), number(*count)));
    format!("{} issued{}; {} refused.", several(issued, "coupon"), most.unwrap_or_default(), number(refused))
}

fn series(overview: &Overview, asked: &Asked) -> Markup {
    let order = if asked.series_ids.is_empty() {
        format!("Those asked for lately first, {PAGE} at a time.")
    } else {
        "Those asked for.".to_owned()
    };
    html! {
        section class="card" aria-labelledby="all-series" {
            h2 id="all-series" { "Series" }
            @for id in &overview.unknown {
                p class="mistake" { "There is no series " (id.0) "." }
            }
            @if overview.series.is_empty() {
                p { @if asked.place == Place::First { "No series to show." } @else { "No more series." } }
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
                    tbody role="rowgroup" { @for one in &overview.series { (one_series(one, overview)) } }
                }
            }
            @if asked.place != Place::First || overview.next.is_some() {
                nav class="pages" aria-label="Pages of series" {
                    @if asked.place != Place::First { a id="first" href=(PATH) { "First page" } }
                    @if let Some(next) = overview.next { a id="next" href={ (PATH) "?after=" (told(next)) } { "Next page" } }
                }
            }
        }
    }
}

fn one_series(one: &SeriesActivity, overview: &Overview) -> Markup {
    let in_the_hour: i64 = one.per_minute.iter().sum();
    let is_expired = overview.now.to_zoned(overview.zone.clone()).date() > one.valid_till_date;
    html! {
        tr role="row" {
            th scope="row" role="rowheader" {
                a id={ "series-" (one.id.0) } href={ (PATH) "?series=" (one.id.0) } { (one.id.0) }
                " " bdi class="description" { (cut(&one.description)) }
                @if is_expired { " " span class="badge" { "expired " (one.valid_till_date) } }
                @if one.externally_managed { " " span class="badge" { "issued by another system" } }
            }
            td role="cell" data-label="Issued" {
                div {
                    (number(one.issued))
                    @if let Some(cap) = one.cap {
                        span class="note" { "of " (number(cap)) }
                        (chart::share(one.issued, cap))
                    } @else if let Some(since) = one.since {
                        span class="note" { "since " (day(since, &overview.zone)) }
                    }
                }
            }
            td role="cell" data-label="Remaining" { div { (remaining(one)) } }
            td role="cell" data-label="Resent" {
                div {
                    (number(one.resent))
                    @if one.replayed > 0 { span class="note" { "and " (number(one.replayed)) " replayed" } }
                }
            }
            td role="cell" data-label="Issued last hour" { div { (number(in_the_hour)) (chart::spark(&one.per_minute)) } }
            td role="cell" data-label="Refused" { div { (refused(one)) } }
        }
    }
}

fn remaining(one: &SeriesActivity) -> Markup {
    let Some(left) = one.remaining() else { return html! { span class="note" { "no limit" } } };
    html! {
        @if left == 0 {
            strong class="none" { "none left" }
        } @else {
            @if one.remaining_is_about() { "about " }
            (number(left))
        }
        @if let Some(pool) = &one.pool {
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

fn refused(one: &SeriesActivity) -> Markup {
    let total: i64 = one.refused.iter().map(|(_, count)| count).sum();
    html! {
        (number(total))
        @if total > 0 {
            ul class="reasons" {
                @for (name, count) in &one.refused {
                    @let why = reason(name);
                    li { b { (why.code) } " " (why.meaning) " " span class="times" { "× " (number(*count)) } }
                }
            }
        }
    }
}

fn refusals(overview: &Overview) -> Markup {
    let refusals = || overview.outcomes.iter().filter(|one| !["issued", "resent", "replayed"].contains(&&*one.outcome));
    html! {
        section class="card" aria-labelledby="refusals" {
            h2 id="refusals" { "Refusals by reason" }
            @if refusals().next().is_none() {
                p { "Nothing was refused." }
            } @else {
                table class="cards" role="table" {
                    caption { "Of the whole organisation; the reason that is most frequent lately first." }
                    thead role="rowgroup" {
                        tr role="row" {
                            @for head in ["Code", "Meaning", "Message to the caller", "Last hour", "In all"] {
                                th scope="col" role="columnheader" { (head) }
                            }
                        }
                    }
                    tbody role="rowgroup" {
                        @for one in refusals() {
                            @let why = reason(&one.outcome);
                            tr role="row" {
                                th scope="row" role="rowheader" { (why.code) }
                                td role="cell" class="text" data-label="Meaning" { div { (why.meaning) } }
                                td role="cell" class="text" data-label="Message" { div { (why.message) } }
                                td role="cell" data-label="Last hour" { div { (number(one.last_hour)) } }
                                td role="cell" data-label="In all" { div { (number(one.total)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Together what one request was refused together.
fn failures(overview: &Overview, asked: &Asked) -> Markup {
    let requests = overview.failures.chunk_by(|one, next| (one.at, &one.request_id) == (next.at, &next.request_id));
    html! {
        section class="card" aria-labelledby="failures" {
            h2 id="failures" { "Recent failures" }
            @if overview.failures.is_empty() {
                p { @if asked.is_narrow() { "None that is kept here; the log has all of them." } @else { "None." } }
            } @else {
                table class="cards" role="table" {
                    caption { "The newest " (overview.failures.len()) @if asked.is_narrow() { " of those asked for" } ", by request id." }
                    thead role="rowgroup" {
                        tr role="row" {
                            @for head in ["Time", "Request id", "Caller", "Series, code and message to the caller"] {
                                th scope="col" role="columnheader" { (head) }
                            }
                        }
                    }
                    tbody role="rowgroup" { @for request in requests { (one_request(request, overview)) } }
                }
            }
        }
    }
}

fn one_request(failures: &[ToldFailure], overview: &Overview) -> Markup {
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
                    // The newest came first.
                    @for one in failures.iter().rev() {
                        @let why = reason(&one.outcome);
                        li { (one.series_id.0) " " b { (why.code) } " " (why.message) }
                    }
                }
            }
        }
    }
}

/// The client, where one made the request, and the till or store that the request was for.
fn caller(failure: &ToldFailure) -> String {
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
                "What a series with a cap has issued and has left, and what a pool has left, is the database's own count (of a pool with \
                 more than a thousand codes, about). All else is counted by each replica and added every few seconds: it may be some \
                 seconds old, and a crash takes back the last seconds of it. No coupon depends on it."
                @if let Some(since) = overview.since { " Counted since " (second(since, &overview.zone)) "." }
            }
            p {
                "Series that do not exist (" (missing.code()) ") count only for the organisation. Failures: the newest thousand or so, of \
                 the last hours; at most 20 a second of each replica are listed, 10 of one organisation, while all are counted. Requests \
                 refused as a whole (400, 401, 403, 429, 503) are in the log and the metrics."
            }
        }
    }
}
