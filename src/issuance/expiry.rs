//! The expiry date of a coupon (contract 4, `expiryStrategyType`), and the format of dates in answers (contract 2).
//!
//! All dates are civil dates in the organisation's time zone.

use jiff::civil::{Date, DateTime, Time, time};
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Span, Timestamp};

use crate::model::{ExpiryStrategy, Series};

/// The last day of a coupon issued on `today`, or `None` if that day is over.
#[must_use]
pub fn expires_on(series: &Series, today: Date) -> Option<Date> {
    let by_strategy = match series.expiry_strategy {
        ExpiryStrategy::SeriesExpiry => series.valid_till_date,
        ExpiryStrategy::Days(days) => days_after(today, days),
        ExpiryStrategy::MonthsEnd(months) => {
            let months = Span::new().try_months(months);
            months.and_then(|months| today.first_of_month().checked_add(months)).map_or(Date::MAX, Date::last_of_month)
        }
    };
    let last = by_strategy.min(series.valid_till_date);
    (last >= today).then_some(last)
}

/// The day `days` later, at most [`Date::MAX`].
pub(super) fn days_after(day: Date, days: i32) -> Date {
    Span::new().try_days(days).and_then(|days| day.checked_add(days)).unwrap_or(Date::MAX)
}

/// The first instant of a day.
pub(super) fn start_of_day(day: Date, zone: &TimeZone) -> Timestamp {
    zone.to_zoned(day.to_datetime(Time::midnight())).map_or(Timestamp::MAX, |start| start.timestamp())
}

/// `validTill`: the day at 00:00:00, RFC 3339. If the clocks skip that midnight, the offset is the one before the skip.
#[must_use]
pub fn valid_till(day: Date, zone: &TimeZone) -> String {
    format_local(day, Time::midnight(), zone)
}

/// `validTillDateTime`: the last second of the day, RFC 3339. If the clocks repeat it, the later one.
#[must_use]
pub fn valid_till_date_time(day: Date, zone: &TimeZone) -> String {
    format_local(day, time(23, 59, 59, 0), zone)
}

fn format_local(day: Date, time: Time, zone: &TimeZone) -> String {
    let local = day.to_datetime(time);
    let offset = match zone.to_ambiguous_timestamp(local).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset,
        AmbiguousOffset::Gap { before, .. } => before,
        AmbiguousOffset::Fold { before, after } => {
            if time == Time::midnight() {
                before
            } else {
                after
            }
        }
    };
    rfc3339(local, offset)
}

/// An instant in this zone, RFC 3339, in whole seconds.
#[must_use]
pub fn format_instant(instant: Timestamp, zone: &TimeZone) -> String {
    let offset = zone.to_offset(instant);
    rfc3339(offset.to_datetime(instant), offset)
}

/// Ends in `Z` or in an offset like `+05:30`. RFC 3339 offsets have no seconds; only historical time zones had some.
fn rfc3339(local: DateTime, offset: Offset) -> String {
    // Answers show whole seconds.
    let local = local.with().subsec_nanosecond(0).build().unwrap_or(local);
    if offset == Offset::UTC {
        return format!("{local}Z");
    }
    let minutes = offset.seconds() / 60;
    let sign = if minutes < 0 { '-' } else { '+' };
    format!("{local}{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
}
