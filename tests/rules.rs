//! Checks `issuance::rules` and `issuance::expiry` against the contract, without a database: the table of re-issue row by row, and
//! properties over random settings and histories.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use coupon_issuer::issuance::expiry::{expires_on, valid_till, valid_till_date_time};
use coupon_issuer::issuance::rules::{Decision, DecisionContext, decide};
use coupon_issuer::issuance::{Refusal, ShownInstant};
use coupon_issuer::model::{
    ClientHandling, CodeShape, DiscountType, ExpiryStrategy, HeldCoupon, IssuanceHistory, Series, SeriesId,
    SeriesSnapshot, StoreId,
};
use jiff::civil::{Date, date};
use jiff::tz::{Offset, TimeZone};
use jiff::{Timestamp, ToSpan};
use proptest::prelude::*;

/// A series without limits.
fn series() -> Series {
    Series {
        id: SeriesId(1),
        snapshot: Arc::new(SeriesSnapshot {
            description: String::new(),
            info: String::new(),
            discount_code: None,
            discount_type: DiscountType::Abs,
            discount_value: 1,
            discount_upto: 0,
        }),
        valid_till_date: date(2027, 5, 9),
        expiry_strategy: ExpiryStrategy::SeriesExpiry,
        redemption_valid_from: None,
        client_handling: ClientHandling::Generated(CodeShape {
            alpha_numeric: true,
            random_code_length: 10,
            coupon_prefix: String::new(),
            coupon_suffix: String::new(),
        }),
        max_create: None,
        is_multiple_vouchers_per_user_allowed: true,
        max_vouchers_per_user: None,
        do_not_resend_existing_voucher: true,
        min_days_between_vouchers: None,
        mutual_exclusive_series_ids: Vec::new(),
        store_ids: Vec::new(),
        externally_managed: false,
    }
}

const NOW: &str = "2026-11-22T10:00:00Z";

fn decided(series: &Series, history: &IssuanceHistory) -> Decision {
    let context = DecisionContext { now: NOW.parse().unwrap(), zone: &TimeZone::UTC, store_id: StoreId(10) };
    decide(series, history, &context)
}

fn held(expires_on: Date) -> HeldCoupon {
    HeldCoupon { coupon_id: 1, series_version: 1, code: "HELD".to_owned(), expires_on, redemption_count: 0 }
}

fn received(count: i32, expires_on: Date) -> IssuanceHistory {
    IssuanceHistory {
        received: count,
        last_ordinal: count,
        last_issued_at: Some("2026-11-01T10:00:00Z".parse().unwrap()),
        longest_valid: Some(held(expires_on)),
        ..IssuanceHistory::default()
    }
}

#[test]
fn reissue_follows_the_table() {
    let (valid, expired) = (date(2026, 11, 22), date(2026, 11, 21));
    let (issue, resend) = ("issue", "resend");
    // received, expires on | doNotResend, multiple, maximum | expected
    for (count, expiry, do_not_resend, multiple, maximum, expected) in [
        (0, valid, true, false, None, issue),
        (0, valid, false, false, None, issue),
        (0, valid, true, true, Some(1), issue),
        (0, valid, true, true, Some(0), "730"),
        (1, valid, false, false, None, resend),
        (1, valid, false, true, None, resend),
        (2, valid, false, true, Some(2), resend),
        (1, expired, false, false, None, "709"),
        (1, expired, false, true, None, issue),
        (2, expired, false, true, Some(2), "730"),
        (1, valid, true, false, None, "709"),
        (1, expired, true, false, None, "709"),
        (1, valid, true, false, Some(5), "709"),
        (1, valid, true, true, None, issue),
        (1, valid, true, true, Some(2), issue),
        (2, valid, true, true, Some(2), "730"),
        (3, valid, true, true, Some(2), "730"),
    ] {
        let series = Series {
            do_not_resend_existing_voucher: do_not_resend,
            is_multiple_vouchers_per_user_allowed: multiple,
            max_vouchers_per_user: maximum,
            ..series()
        };
        let history = if count == 0 { IssuanceHistory::default() } else { received(count, expiry) };
        let actual = match decided(&series, &history) {
            Decision::Issue { .. } => issue.to_owned(),
            Decision::Resend(_) => resend.to_owned(),
            Decision::Refuse(refusal) => refusal.code().to_string(),
        };
        assert_eq!(actual, expected, "{count} received, {expiry}, {do_not_resend} {multiple} {maximum:?}");
    }
}

/// Starts with all reasons at once. Removing a reason shows the next one.
#[test]
fn reasons_have_the_documented_order() {
    let mut series = Series {
        externally_managed: true,
        store_ids: vec![StoreId(99)],
        valid_till_date: date(2026, 11, 21),
        redemption_valid_from: Some(date(2028, 1, 1)),
        is_multiple_vouchers_per_user_allowed: false,
        max_vouchers_per_user: Some(1),
        max_create: Some(5),
        min_days_between_vouchers: Some(60),
        client_handling: ClientHandling::Pool,
        ..series()
    };
    let mut history = IssuanceHistory { holds_excluded: true, issued: 5, ..received(1, date(2026, 12, 1)) };
    let refused = |series: &Series, history: &IssuanceHistory| match decided(series, history) {
        Decision::Refuse(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&series, &history), Refusal::ExternallyManaged);
    series.externally_managed = false;
    assert_eq!(refused(&series, &history), Refusal::InvalidStore);
    series.store_ids = vec![StoreId(10)];
    assert_eq!(refused(&series, &history), Refusal::Expired);
    series.valid_till_date = date(2027, 5, 9);
    assert_eq!(refused(&series, &history), Refusal::Expired, "redemption starts after it");
    series.redemption_valid_from = Some(date(2027, 5, 9));
    assert_eq!(refused(&series, &history), Refusal::AlreadyHolds);
    series.is_multiple_vouchers_per_user_allowed = true;
    assert_eq!(refused(&series, &history), Refusal::PerUserMaximum);
    series.max_vouchers_per_user = None;
    assert_eq!(refused(&series, &history), Refusal::MutuallyExclusive);
    history.holds_excluded = false;
    assert_eq!(refused(&series, &history), Refusal::CapReached);
    series.max_create = None;
    assert_eq!(refused(&series, &history), Refusal::PoolEmpty);
    history.pool_has_code = true;
    let instant = "2026-12-31T00:00:00Z".parse().unwrap();
    let next_eligible_at = ShownInstant { instant, offset: Offset::UTC };
    assert_eq!(refused(&series, &history), Refusal::Gap { next_eligible_at });
    series.min_days_between_vouchers = Some(21);
    assert_eq!(decided(&series, &history), Decision::Issue { expires_on: date(2027, 5, 9), ordinal: Some(2) });
}

#[test]
fn the_last_day_follows_the_strategy() {
    use ExpiryStrategy::{Days, MonthsEnd, SeriesExpiry};
    let far = date(2099, 12, 31);
    for (strategy, today, series_expiry, expected) in [
        (SeriesExpiry, date(2026, 11, 22), date(2026, 11, 22), Some(date(2026, 11, 22))),
        (SeriesExpiry, date(2026, 11, 23), date(2026, 11, 22), None),
        (Days(0), date(2026, 11, 22), far, Some(date(2026, 11, 22))),
        (Days(1), date(2028, 2, 28), far, Some(date(2028, 2, 29))),
        (Days(365), date(2027, 3, 1), far, Some(date(2028, 2, 29))),
        (Days(30), date(2026, 11, 22), date(2026, 12, 1), Some(date(2026, 12, 1))),
        (MonthsEnd(0), date(2028, 2, 1), far, Some(date(2028, 2, 29))),
        (MonthsEnd(0), date(2027, 2, 28), far, Some(date(2027, 2, 28))),
        (MonthsEnd(1), date(2027, 1, 31), far, Some(date(2027, 2, 28))),
        (MonthsEnd(3), date(2026, 11, 30), far, Some(date(2027, 2, 28))),
        (MonthsEnd(1), date(2026, 12, 15), far, Some(date(2027, 1, 31))),
        (MonthsEnd(2), date(2026, 11, 22), date(2027, 1, 10), Some(date(2027, 1, 10))),
        (Days(i32::MAX), date(2026, 11, 22), far, Some(far)),
        (MonthsEnd(i32::MAX), date(2026, 11, 22), far, Some(far)),
    ] {
        let series = Series { expiry_strategy: strategy, valid_till_date: series_expiry, ..series() };
        assert_eq!(expires_on(&series, today), expected, "{strategy:?} on {today}");
    }
}

#[test]
fn a_day_is_formatted_in_its_time_zone() {
    for (zone, day, at_midnight, last_second) in [
        ("UTC", date(2027, 5, 9), "2027-05-09T00:00:00Z", "2027-05-09T23:59:59Z"),
        ("Asia/Kolkata", date(2027, 5, 9), "2027-05-09T00:00:00+05:30", "2027-05-09T23:59:59+05:30"),
        ("America/New_York", date(2027, 7, 1), "2027-07-01T00:00:00-04:00", "2027-07-01T23:59:59-04:00"),
        // The clocks go forward within the day, then back.
        ("Europe/Berlin", date(2027, 3, 28), "2027-03-28T00:00:00+01:00", "2027-03-28T23:59:59+02:00"),
        ("Europe/Berlin", date(2027, 10, 31), "2027-10-31T00:00:00+02:00", "2027-10-31T23:59:59+01:00"),
        ("Europe/London", date(2027, 1, 1), "2027-01-01T00:00:00Z", "2027-01-01T23:59:59Z"),
        // The clocks skip midnight, then repeat the last hour.
        ("America/Sao_Paulo", date(2018, 11, 4), "2018-11-04T00:00:00-03:00", "2018-11-04T23:59:59-02:00"),
        ("America/Sao_Paulo", date(2018, 2, 17), "2018-02-17T00:00:00-02:00", "2018-02-17T23:59:59-03:00"),
    ] {
        let zone = TimeZone::get(zone).unwrap();
        assert_eq!(valid_till(day, &zone), at_midnight);
        assert_eq!(valid_till_date_time(day, &zone), last_second);
    }
}

fn any_strategy() -> impl Strategy<Value = ExpiryStrategy> {
    prop_oneof![
        Just(ExpiryStrategy::SeriesExpiry),
        (0..400).prop_map(ExpiryStrategy::Days),
        (0..30).prop_map(ExpiryStrategy::MonthsEnd),
    ]
}

prop_compose! {
    fn any_series()(
        days in -40_i64..800,
        expiry_strategy in any_strategy(),
        from in proptest::option::of(-40_i64..800),
        (max_create, maximum, gap) in (
            proptest::option::of(0_i64..20), proptest::option::of(0_i32..5), proptest::option::of(1_i32..60)),
        (multiple, do_not_resend, external, pool) in any::<(bool, bool, bool, bool)>(),
        stores in proptest::sample::subsequence(vec![10, 11, 12], 0..=3),
    ) -> Series {
        let day = |days: i64| date(2026, 11, 22).checked_add(days.days()).unwrap();
        Series {
            valid_till_date: day(days),
            expiry_strategy,
            redemption_valid_from: from.map(day),
            client_handling: if pool { ClientHandling::Pool } else { series().client_handling },
            max_create,
            is_multiple_vouchers_per_user_allowed: multiple,
            max_vouchers_per_user: maximum,
            do_not_resend_existing_voucher: do_not_resend,
            min_days_between_vouchers: gap,
            store_ids: stores.into_iter().map(StoreId).collect(),
            externally_managed: external,
            ..series()
        }
    }
}

prop_compose! {
    fn any_history()(
        count in 0_i32..6, hours_ago in 0_i64..2000, valid_days in -30_i64..400, issued in 0_i64..25,
        (excluded, has_code) in any::<(bool, bool)>(),
    ) -> IssuanceHistory {
        let now: Timestamp = NOW.parse().unwrap();
        let issued_at = now.checked_sub(hours_ago.hours()).unwrap();
        let expires_on = date(2026, 11, 22).checked_add(valid_days.days()).unwrap();
        IssuanceHistory {
            received: count,
            last_ordinal: count,
            last_issued_at: (count > 0).then_some(issued_at),
            longest_valid: (count > 0).then(|| held(expires_on)),
            holds_excluded: excluded,
            issued,
            pool_has_code: has_code,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A customer with few coupons gets one whatever else the history of the series says, so the write can decide on the number alone.
    #[test]
    fn below_this_number_the_history_does_not_matter(series in any_series(), history in any_history()) {
        let history = IssuanceHistory { holds_excluded: false, issued: 0, pool_has_code: true, ..history };
        let series = Series { max_create: None, ..series };
        let first = IssuanceHistory { received: 0, last_issued_at: None, longest_valid: None, ..history.clone() };
        prop_assert_eq!(series.issues_below().is_some(), series.depends_on_history());
        if series.issues_below().is_none_or(|below| history.received < below) {
            prop_assert_eq!(decided(&series, &history), decided(&series, &first));
        }
        if series.issues_below() == Some(0) {
            prop_assert!(matches!(decided(&series, &first), Decision::Refuse(_)));
        }
    }

    /// For all settings and histories, an issued coupon exceeds no limit and no expiry, and a resent coupon is valid.
    #[test]
    fn no_decision_exceeds_a_limit(
        series in any_series(),
        history in any_history(),
        zone in prop_oneof![Just("UTC"), Just("Asia/Kolkata"), Just("America/New_York"), Just("Pacific/Apia")],
    ) {
        let zone = TimeZone::get(zone).unwrap();
        let now: Timestamp = NOW.parse().unwrap();
        let today = zone.to_datetime(now).date();
        let context = DecisionContext { now, zone: &zone, store_id: StoreId(10) };
        match decide(&series, &history, &context) {
            Decision::Issue { expires_on, ordinal } => {
                prop_assert!(!series.externally_managed && !history.holds_excluded);
                prop_assert!(series.store_ids.is_empty() || series.store_ids.contains(&StoreId(10)));
                prop_assert!(today <= expires_on && expires_on <= series.valid_till_date);
                prop_assert!(series.redemption_valid_from.is_none_or(|from| from <= expires_on));
                prop_assert!(series.max_create.is_none_or(|cap| history.issued < cap));
                prop_assert!(series.max_vouchers_per_user.is_none_or(|maximum| history.received < maximum));
                prop_assert!(series.is_multiple_vouchers_per_user_allowed || history.received == 0);
                prop_assert!(series.client_handling != ClientHandling::Pool || history.pool_has_code);
                if let (Some(gap), Some(last)) = (series.min_days_between_vouchers, history.last_issued_at) {
                    let last = zone.to_datetime(last).date();
                    prop_assert!(today.since(last).unwrap().get_days() >= gap);
                }
                prop_assert_eq!(ordinal, series.depends_on_history().then_some(history.last_ordinal + 1));
                match series.expiry_strategy {
                    ExpiryStrategy::SeriesExpiry => prop_assert_eq!(expires_on, series.valid_till_date),
                    ExpiryStrategy::Days(days) => prop_assert!(today.until(expires_on).unwrap().get_days() <= days),
                    ExpiryStrategy::MonthsEnd(_) => prop_assert!(
                        expires_on == expires_on.last_of_month() || expires_on == series.valid_till_date
                    ),
                }
            }
            Decision::Resend(coupon) => {
                prop_assert!(coupon.expires_on >= today && !series.do_not_resend_existing_voucher);
                prop_assert!(!series.externally_managed && history.received > 0);
            }
            Decision::Refuse(Refusal::Gap { next_eligible_at }) => {
                // The hint is exact: the gap is over at this instant, and not a second before.
                let at = |now| decide(&series, &history, &DecisionContext { now, ..context.clone() });
                let is_gap = |decision: &Decision| matches!(decision, Decision::Refuse(Refusal::Gap { .. }));
                prop_assert!(!is_gap(&at(next_eligible_at.instant)));
                let before = at(next_eligible_at.instant.checked_sub(1.second()).unwrap());
                let issues = matches!(before, Decision::Issue { .. });
                prop_assert!(!issues, "{:?}", before);
            }
            Decision::Refuse(refusal) => prop_assert!(!refusal.is_retryable(), "{:?}", refusal),
        }
    }
}
