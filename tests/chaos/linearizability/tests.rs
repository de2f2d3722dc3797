//! Handwritten histories, and large generated ones. Times are milliseconds.
//! The verdicts on small random histories are compared with those of a search through all orders.

use std::collections::HashMap;
use std::rc::Rc;

use jiff::Timestamp;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::cap::{self, Cap, Counter};
use super::customer::{Customer, Group, Holding};
use super::rules::{
    CAP_REACHED, EXPIRED, GAP, HAS_ONE, HOLDS_EXCLUDED, MAX_REACHED, POOL_EMPTY, Refusal, UNKNOWN_SERIES,
};
use super::search::{LIMITS, Limits, NEVER, Object, Timed, Verdict, judge};
use super::{Checked, Codes, check, operations, rules};
use crate::history::{Answer, Apply, FORMAT, History, Issue, Line, Nanos, Run, Series};

const UNLIMITED: i64 = 1;
const HOT: i64 = 3;
const ONE_EACH: i64 = 5;
const TWO_EACH: i64 = 6;
const RESENT: i64 = 7;
const ONE_A_DAY: i64 = 8;
const UPLOADED: i64 = 9;
const GENERIC: i64 = 11;
/// The first one excludes the second one, which excludes the third one.
const EXCLUDING: [i64; 3] = [12, 13, 14];

fn series_with(cap: i64) -> Vec<Series> {
    let ids = [UNLIMITED, HOT, ONE_EACH, TWO_EACH, RESENT, ONE_A_DAY, UPLOADED, GENERIC];
    let series = |id: i64| Series {
        id,
        client_handling_type: if id == UPLOADED { "DISC_CODE_PIN" } else { "DISC_CODE" }.to_owned(),
        generic_code: (id == GENERIC).then(|| "forall".to_owned()),
        valid_till_date: "2099-12-31".parse().unwrap(),
        max_create: if id == HOT { cap } else { -1 },
        is_multiple_vouchers_per_user_allowed: id != ONE_EACH,
        max_vouchers_per_user: if id == TWO_EACH { 2 } else { -1 },
        do_not_resend_existing_voucher: id != RESENT && id != GENERIC,
        min_days_between_vouchers: if id == ONE_A_DAY { 1 } else { -1 },
        mutual_exclusive_series_ids: if EXCLUDING[..2].contains(&id) { vec![id + 1] } else { Vec::new() },
    };
    ids.into_iter().chain(EXCLUDING).map(series).collect()
}

const fn millis(time: u64) -> Nanos {
    time * 1_000_000
}

fn apply_rules(start: u64, end: Option<u64>, series: Vec<Series>) -> Line {
    Line::Apply(Apply { process: "operator".to_owned(), start: millis(start), end: end.map(millis), series })
}

fn apply(start: u64, end: Option<u64>, cap: i64) -> Line {
    apply_rules(start, end, series_with(cap))
}

fn one(key: &str, customer: &str, series: i64, start: u64, end: Option<u64>, answer: Option<Answer>) -> Issue {
    Issue {
        process: key.to_owned(),
        start: millis(start),
        end: end.map(millis),
        key: key.to_owned(),
        customer: customer.to_owned(),
        series: vec![series],
        status: end.map(|_| if answer.is_some() { 200 } else { 503 }),
        answer: answer.map(|answer| vec![answer]),
    }
}

/// A call of the customer "ann", with its answer.
fn ann(key: &str, series: i64, start: u64, end: u64, answer: Answer) -> Line {
    Line::Issue(one(key, "ann", series, start, Some(end), Some(answer)))
}

fn bob(key: &str, series: i64, start: u64, end: u64, answer: Answer) -> Line {
    Line::Issue(one(key, "bob", series, start, Some(end), Some(answer)))
}

/// A call of the customer "ann" without an answer.
fn lost(key: &str, series: i64, start: u64) -> Line {
    Line::Issue(one(key, "ann", series, start, None, None))
}

fn receipt(key: &str, series: i64, start: u64, end: u64, answer: Answer) -> Line {
    Line::Receipt(one(key, "ann", series, start, Some(end), Some(answer)))
}

fn issued(code: &str) -> Answer {
    Answer::Issued {
        code: code.to_owned(),
        valid_till: "2099-12-31".parse().unwrap(),
        shown: format!("hash of {code}"),
    }
}

fn resent(code: &str) -> Answer {
    Answer::Resent { code: code.to_owned(), valid_till: "2099-12-31".parse().unwrap() }
}

fn refused((error, message): Refusal) -> Answer {
    Answer::Refused { error, message: message.to_owned(), next_eligible_at: None }
}

fn too_early(next: &str) -> Answer {
    let (error, message) = GAP;
    Answer::Refused { error, message: message.to_owned(), next_eligible_at: Some(next.parse().unwrap()) }
}

fn timed_out() -> Answer {
    refused((748, "Coupon service timed out"))
}

fn not_stored() -> Answer {
    refused((786, "Coupon processing failed, Please try again later"))
}

fn began_at(began: &str, lines: Vec<Line>) -> Checked {
    let began: Timestamp = began.parse().unwrap();
    let run = Line::Run(Run { format: FORMAT, seed: 0, began, time_zone: "UTC".to_owned(), longest_call: 0 });
    check(&History::of([run].into_iter().chain(lines).collect()).unwrap())
}

/// The verdict on these lines, under the rules with a cap of 2.
fn judged(lines: Vec<Line>) -> Checked {
    began_at("2026-11-22T10:00:00Z", [apply(0, Some(1), 2)].into_iter().chain(lines).collect())
}

#[track_caller]
fn acquitted(lines: Vec<Line>) {
    let checked = judged(lines);
    assert!(checked.violations.is_empty(), "{}", checked.violations.join("\n"));
}

/// Asserts that exactly this partition is convicted.
#[track_caller]
fn convicted(name: &str, lines: Vec<Line>) {
    let checked = judged(lines);
    let [violation] = checked.violations.as_slice() else { panic!("{:?}", checked.violations) };
    assert!(violation.starts_with(&format!("{name}: not linearizable")), "{violation}");
}

#[test]
fn a_customer_is_issued_one_coupon() {
    acquitted(vec![
        ann("a", ONE_EACH, 10, 11, issued("A")),
        ann("b", ONE_EACH, 12, 13, refused(HAS_ONE)),
        bob("c", ONE_EACH, 14, 15, issued("C")),
    ]);
    let twice = |second: u64| {
        vec![ann("a", ONE_EACH, 10, 20, issued("A")), ann("b", ONE_EACH, second, second + 1, issued("B"))]
    };
    convicted("ann, series 5", twice(30));
    convicted("ann, series 5", twice(15));
}

#[test]
fn a_refusal_follows_its_reason() {
    let refused_first =
        |end: u64| vec![ann("a", ONE_EACH, 10, end, refused(HAS_ONE)), ann("b", ONE_EACH, 20, 21, issued("B"))];
    convicted("ann, series 5", refused_first(19));
    // Operations that touch at an instant overlap.
    acquitted(refused_first(20));
    convicted("ann, series 99", vec![ann("a", 99, 10, 11, issued("A"))]);
    acquitted(vec![ann("a", 99, 10, 11, refused(UNKNOWN_SERIES))]);
    convicted("ann, series 1", vec![ann("a", UNLIMITED, 10, 11, refused(EXPIRED))]);
}

#[test]
fn a_resent_coupon_belongs_to_the_customer() {
    let lines = |code: &str| {
        vec![
            ann("a", RESENT, 10, 11, issued("A")),
            bob("b", RESENT, 10, 11, issued("B")),
            ann("c", RESENT, 12, 13, resent(code)),
        ]
    };
    acquitted(lines("A"));
    convicted("ann, series 7", lines("B"));
    convicted("ann, series 7", lines("nobody's"));
    convicted("ann, series 7", vec![ann("a", RESENT, 10, 11, issued("A")), ann("b", RESENT, 12, 13, issued("B"))]);
    acquitted(vec![ann("a", GENERIC, 10, 11, issued("FORALL")), ann("b", GENERIC, 12, 13, resent("FORALL"))]);
    convicted("ann, series 11", vec![ann("a", GENERIC, 10, 11, issued("OTHER"))]);
}

#[test]
fn a_cap_is_kept_and_used_up() {
    let two = || vec![ann("a", HOT, 10, 11, issued("A")), bob("b", HOT, 10, 11, issued("B"))];
    let and = |line: Line| two().into_iter().chain([line]).collect::<Vec<_>>();
    acquitted(and(ann("c", HOT, 12, 13, refused(CAP_REACHED))));
    convicted("cap of series 3", and(ann("c", HOT, 12, 13, issued("C"))));
    convicted("cap of series 3", vec![ann("a", HOT, 10, 11, issued("A")), ann("c", HOT, 12, 13, refused(CAP_REACHED))]);
    // The refusal ended before the call for the second coupon began.
    convicted("cap of series 3", and(ann("c", HOT, 8, 9, refused(CAP_REACHED))));
    acquitted(and(ann("c", HOT, 8, 10, refused(CAP_REACHED))));
    convicted("ann, series 1", vec![ann("a", UNLIMITED, 10, 11, refused(CAP_REACHED))]);
}

#[test]
fn a_cap_rises() {
    let lines = |asked: u64, end: Option<u64>| {
        vec![
            ann("a", HOT, 10, 11, issued("A")),
            ann("b", HOT, 12, 13, issued("B")),
            ann("c", HOT, 14, 15, refused(CAP_REACHED)),
            apply(20, end, 3),
            ann("d", HOT, asked, asked + 5, issued("D")),
        ]
    };
    acquitted(lines(30, Some(25)));
    acquitted(lines(16, Some(25)));
    convicted("cap of series 3", lines(10, Some(25)).into_iter().chain([apply(26, Some(27), 2)]).collect());
    // A failed change may have taken effect.
    acquitted(lines(30, None));
    acquitted(lines(30, None).into_iter().chain([ann("e", HOT, 40, 41, refused(CAP_REACHED))]).collect());
    convicted("cap of series 3", lines(30, None).into_iter().chain([ann("e", HOT, 40, 41, issued("E"))]).collect());
    // Or it may not.
    acquitted(vec![apply(5, None, 0), ann("a", HOT, 10, 11, issued("A"))]);
}

#[test]
fn a_failed_change_does_not_replace_a_later_one() {
    let lines = |answer: Answer| {
        vec![
            apply(5, None, 0),
            ann("a", HOT, 10, 11, refused(CAP_REACHED)),
            apply(20, Some(21), 2),
            ann("b", HOT, 30, 31, answer),
        ]
    };
    acquitted(lines(issued("B")));
    convicted("cap of series 3", lines(refused(CAP_REACHED)));
}

#[test]
fn overlapping_changes_are_not_judged() {
    let checked = judged(vec![apply(10, Some(20), 3), apply(15, Some(25), 4)]);
    assert!(checked.violations[0].starts_with("not checked: changes of the settings overlap"), "{checked:?}");
}

#[test]
fn an_unknown_outcome_explains_later_answers() {
    acquitted(vec![lost("a", ONE_EACH, 10), ann("b", ONE_EACH, 20, 21, refused(HAS_ONE))]);
    acquitted(vec![lost("a", ONE_EACH, 10), ann("b", ONE_EACH, 20, 21, issued("B"))]);
    convicted("ann, series 5", vec![lost("a", ONE_EACH, 30), ann("b", ONE_EACH, 20, 21, refused(HAS_ONE))]);
    let then = |answer: Answer| {
        vec![lost("a", ONE_EACH, 10), ann("b", ONE_EACH, 20, 21, refused(HAS_ONE)), ann("c", ONE_EACH, 30, 31, answer)]
    };
    acquitted(then(timed_out()));
    convicted("ann, series 5", then(issued("C")));
    // An unsettled operation explains one coupon only.
    let one =
        || vec![lost("a", HOT, 10), ann("b", HOT, 20, 21, issued("B")), ann("c", HOT, 30, 31, refused(CAP_REACHED))];
    acquitted(one());
    convicted("cap of series 3", one().into_iter().chain([ann("d", HOT, 40, 41, issued("D"))]).collect());
}

#[test]
fn an_unknown_coupon_gets_one_code() {
    let lines = |second: &str| {
        vec![lost("a", RESENT, 10), ann("b", RESENT, 20, 21, resent("X")), ann("c", RESENT, 30, 31, resent(second))]
    };
    acquitted(lines("X"));
    convicted("ann, series 7", lines("Y"));
    convicted("ann, series 7", lines("X").into_iter().chain([bob("d", RESENT, 8, 9, issued("X"))]).collect());
    acquitted(vec![lost("a", GENERIC, 10), ann("b", GENERIC, 20, 21, resent("FORALL"))]);
    // A code shown to two customers belongs to neither.
    let both = lines("X").into_iter().chain([bob("d", RESENT, 50, 51, resent("X"))]).collect();
    assert_eq!(judged(both).violations.len(), 2);
}

#[test]
fn an_operation_lasts_until_it_is_settled() {
    // The coupon of "a" is issued before its answer.
    acquitted(vec![
        lost("a", ONE_EACH, 10),
        ann("b", ONE_EACH, 20, 21, refused(HAS_ONE)),
        ann("a", ONE_EACH, 25, 26, timed_out()),
        ann("a", ONE_EACH, 30, 31, issued("A")),
    ]);
    // A refusal ends the attempts before it, and so does 786.
    for answer in [refused(CAP_REACHED), not_stored()] {
        let lines =
            vec![lost("a", HOT, 10), ann("a", HOT, 30, 31, answer), ann("b", HOT, 40, 41, refused(CAP_REACHED))];
        assert_eq!(judged(lines).violations.len(), 1);
    }
    // The next call begins another operation.
    acquitted(vec![
        ann("a", HOT, 10, 11, issued("A")),
        ann("b", HOT, 12, 13, issued("B")),
        ann("c", HOT, 14, 15, refused(CAP_REACHED)),
        apply(20, Some(21), 3),
        ann("c", HOT, 30, 31, issued("C")),
    ]);
    // A receipt settles an attempt by a coupon, never by a refusal, which may be that of an earlier attempt.
    acquitted(vec![
        lost("a", HOT, 10),
        receipt("a", HOT, 11, 12, timed_out()),
        receipt("a", HOT, 13, 14, refused(CAP_REACHED)),
        receipt("a", HOT, 20, 21, issued("A")),
        ann("a", HOT, 30, 31, issued("A")),
    ]);
    convicted(
        "ann, series 3",
        vec![lost("a", HOT, 10), ann("a", HOT, 20, 21, not_stored()), receipt("a", HOT, 30, 31, issued("A"))],
    );
}

#[test]
fn every_answer_shows_the_same_coupon() {
    let again = |second: Answer| vec![ann("a", UNLIMITED, 10, 11, issued("A")), ann("a", UNLIMITED, 20, 21, second)];
    acquitted(again(issued("A")));
    acquitted(again(timed_out()));
    let another_hash =
        Answer::Issued { code: "A".to_owned(), valid_till: "2099-12-31".parse().unwrap(), shown: "another".to_owned() };
    for other in [issued("B"), another_hash, resent("A"), refused(HAS_ONE), not_stored()] {
        convicted("ann, series 1", again(other));
    }
    let first = || ann("a", RESENT, 10, 11, issued("A"));
    let resent_twice =
        |second: &str| vec![first(), ann("b", RESENT, 20, 21, resent("A")), ann("b", RESENT, 30, 31, resent(second))];
    acquitted(resent_twice("A"));
    convicted("ann, series 7", resent_twice("B"));
    convicted("ann, series 7", vec![first(), receipt("a", RESENT, 20, 21, issued("B"))]);
}

#[test]
fn exclusion_holds_both_ways() {
    let [first, second, third] = EXCLUDING;
    for (one, other) in [(first, second), (second, first), (second, third), (third, second)] {
        let lines = |answer: Answer| vec![ann("a", one, 10, 11, issued("A")), ann("b", other, 20, 21, answer)];
        acquitted(lines(refused(HOLDS_EXCLUDED)));
        convicted("ann, series 12, 13, 14", lines(issued("B")));
        convicted(
            "ann, series 12, 13, 14",
            vec![ann("b", other, 10, 11, refused(HOLDS_EXCLUDED)), ann("a", one, 20, 21, issued("A"))],
        );
        acquitted(vec![lost("a", one, 10), ann("b", other, 20, 21, refused(HOLDS_EXCLUDED))]);
    }
    acquitted(vec![ann("a", first, 10, 11, issued("A")), ann("b", third, 20, 21, issued("B"))]);
    convicted(
        "ann, series 12, 13, 14",
        vec![ann("a", first, 10, 11, issued("A")), ann("b", third, 20, 21, refused(HOLDS_EXCLUDED))],
    );
}

#[test]
fn refusals_come_in_the_order_of_the_contract() {
    let lines = |answer: Answer| {
        vec![
            ann("a", TWO_EACH, 10, 11, issued("A")),
            ann("b", TWO_EACH, 12, 13, issued("B")),
            ann("c", TWO_EACH, 20, 21, answer),
        ]
    };
    acquitted(lines(refused(MAX_REACHED)));
    for wrong in [issued("C"), issued("A"), refused(HAS_ONE), refused(CAP_REACHED), refused(POOL_EMPTY)] {
        convicted("ann, series 6", lines(wrong));
    }
    acquitted(vec![ann("a", UPLOADED, 10, 11, refused(POOL_EMPTY))]);
    convicted("ann, series 5", vec![ann("a", ONE_EACH, 10, 11, refused(POOL_EMPTY))]);
    // A customer that holds a coupon is refused for that reason, not because of the cap.
    let capped = |own: Refusal| {
        let mut series = series_with(1);
        for series in &mut series {
            series.is_multiple_vouchers_per_user_allowed &= series.id != HOT;
        }
        let asked = [ann("a", HOT, 10, 11, issued("A")), ann("b", HOT, 20, 21, refused(own))];
        let applied = apply_rules(0, Some(1), series);
        began_at("2026-11-22T10:00:00Z", [applied].into_iter().chain(asked).collect()).violations.len()
    };
    assert_eq!((capped(HAS_ONE), capped(CAP_REACHED)), (0, 1));
}

#[test]
fn rules_change_at_one_moment() {
    let stricter = || {
        let mut series = series_with(2);
        for series in &mut series {
            series.is_multiple_vouchers_per_user_allowed = false;
        }
        series
    };
    let lines = |start: u64, end: Option<u64>, answer: Answer| {
        vec![
            ann("a", UNLIMITED, 10, 11, issued("A")),
            apply_rules(start, end, stricter()),
            ann("b", UNLIMITED, 30, 31, answer),
        ]
    };
    acquitted(lines(20, Some(21), refused(HAS_ONE)));
    convicted("ann, series 1", lines(20, Some(21), issued("B")));
    acquitted(lines(20, Some(40), issued("B")));
    acquitted(lines(20, None, issued("B")));
    acquitted(lines(20, None, refused(HAS_ONE)));
    convicted("ann, series 1", lines(35, Some(40), refused(HAS_ONE)));
}

#[test]
fn a_gap_ends_with_the_day() {
    let hour = 3_600_000;
    let lines = |second: u64, answer: Answer| {
        let applied = apply(0, Some(1), 2);
        let asked = [ann("a", ONE_A_DAY, 10, 11, issued("A")), ann("b", ONE_A_DAY, second, second + 1, answer)];
        began_at("2026-11-22T22:00:00Z", [applied].into_iter().chain(asked).collect()).violations.len()
    };
    let tomorrow = || too_early("2026-11-23T00:00:00Z");
    assert_eq!(lines(hour, tomorrow()), 0);
    assert_eq!(lines(hour, too_early("2026-11-24T00:00:00Z")), 1);
    assert_eq!(lines(hour, refused(GAP)), 1);
    assert_eq!(lines(hour, issued("B")), 1);
    assert_eq!(lines(3 * hour, issued("B")), 0);
    assert_eq!(lines(3 * hour, tomorrow()), 1);
    // At midnight both days are possible.
    assert_eq!(lines(2 * hour, tomorrow()), 0);
    assert_eq!(lines(2 * hour, issued("B")), 0);
}

#[test]
fn answers_have_an_entity_for_each_series() {
    let mut call = one("a", "ann", UNLIMITED, 10, Some(11), Some(issued("A")));
    call.series.push(HOT);
    let checked = judged(vec![Line::Issue(call)]);
    assert!(checked.violations[0].contains("not answered what the key asks for"), "{checked:?}");
}

#[test]
fn a_verdict_shows_the_answer_that_no_order_explains() {
    let lines = (0..100).map(|n| ann(&format!("k{n}"), UNLIMITED, 10 + n, 200, issued(&format!("A{n}"))));
    let checked = judged(lines.chain([ann("bad", UNLIMITED, 100, 105, refused(CAP_REACHED))]).collect());
    let [violation] = checked.violations.as_slice() else { panic!("{:?}", checked.violations) };
    assert!(violation.contains("no order explains all: 0.100000 to 0.105000 bad/0 ann series 1: refused 5001"));
    assert!(violation.lines().count() <= 44, "{violation}");
}

/// Many tills wait long for one series. Their subsets are too many to try.
#[test]
fn interchangeable_operations_are_not_permuted() {
    let mut random = StdRng::seed_from_u64(4);
    let lines = |last: i64, random: &mut StdRng| {
        let mut lines = vec![apply(20, Some(900), 40), apply(910, Some(990), last)];
        for n in 0..last {
            let (key, code) = (format!("k{n}"), format!("A{n}"));
            let start = if n < 2 { 10 } else { random.random_range(20..400) };
            let end = if n % 2 == 0 { random.random_range(450..900) } else { random.random_range(990..1000) };
            lines.push(bob(&key, HOT, start, end, issued(&code)));
            lines.push(ann(&format!("r{n}"), HOT, start, end, refused(CAP_REACHED)));
        }
        lines.shuffle(random);
        lines
    };
    acquitted(lines(60, &mut random));
    let more = bob("more", HOT, 300, 1000, issued("more"));
    convicted("cap of series 3", lines(60, &mut random).into_iter().chain([more]).collect());
}

/// A small service that answers as the contract says, one operation after the other.
#[derive(Default)]
struct Service {
    cap: usize,
    issued: usize,
    held: HashMap<(String, i64), Vec<String>>,
}

impl Service {
    fn answer(&mut self, customer: &str, series: i64, code: &str) -> Answer {
        let has = |id: i64| self.held.get(&(customer.to_owned(), id)).map_or(0, Vec::len);
        let excluded =
            EXCLUDING.contains(&series) && EXCLUDING.iter().any(|id| id.abs_diff(series) == 1 && has(*id) > 0);
        let refusal = match series {
            ONE_EACH if has(series) > 0 => HAS_ONE,
            TWO_EACH if has(series) > 1 => MAX_REACHED,
            RESENT if has(series) > 0 => return resent(&self.held[&(customer.to_owned(), series)][0]),
            _ if excluded => HOLDS_EXCLUDED,
            HOT if self.issued >= self.cap => CAP_REACHED,
            _ => {
                self.issued += usize::from(series == HOT);
                self.held.entry((customer.to_owned(), series)).or_default().push(code.to_owned());
                return issued(code);
            }
        };
        refused(refusal)
    }
}

/// Operations that take effect one after the other. Each has a random start before and end after that moment, so that they overlap.
fn generated(operations: u64, random: &mut StdRng) -> Vec<Line> {
    let ids = [UNLIMITED, HOT, ONE_EACH, TWO_EACH, RESENT, EXCLUDING[0], EXCLUDING[1], EXCLUDING[2]];
    let mut service = Service { cap: 2, ..Service::default() };
    let mut lines = Vec::new();
    for n in 0..operations {
        let moment = 100_000 + 10 * n;
        let reach = if random.random_ratio(1, 300) { 5000 } else { 40 };
        let (start, end) = (moment - random.random_range(0..reach), moment + random.random_range(0..reach));
        if n % 2000 == 1000 {
            service.cap += 60;
            let cap = i64::try_from(service.cap).unwrap();
            // Some changes succeed without an answer.
            lines.push(apply(moment - 9, (n % 6000 != 1000).then_some(moment + 9), cap));
            continue;
        }
        let present = if random.random_ratio(3, 10) { 5 } else { 300 };
        let (key, customer) = (format!("k{n}"), format!("c{}", n / 50 + random.random_range(0..present)));
        let series = ids[random.random_range(0..ids.len())];
        let answer = service.answer(&customer, series, &format!("A{n}"));
        if random.random_ratio(1, 10) {
            lines.push(Line::Issue(one(&key, &customer, series, start, None, None)));
        }
        lines.push(Line::Issue(one(&key, &customer, series, start + 1, Some(end + 1), Some(answer))));
    }
    lines
}

#[test]
fn a_long_history_is_judged() {
    let lines = generated(100_000, &mut StdRng::seed_from_u64(1));
    let checked = judged(lines);
    println!("{} partitions, {} operations in {:?}", checked.partitions, checked.operations, checked.took);
    assert!(checked.violations.is_empty(), "{}", checked.violations.join("\n"));
    assert_eq!(checked.operations, 100_000 - 50);
}

/// One answer of a correct history is replaced by a wrong one.
#[test]
fn one_wrong_answer_among_many_is_found() {
    for (seed, series, from) in
        [(2, ONE_EACH, HAS_ONE), (3, TWO_EACH, MAX_REACHED), (4, HOT, CAP_REACHED), (5, 13, HOLDS_EXCLUDED)]
    {
        let mut lines = generated(10_000, &mut StdRng::seed_from_u64(seed));
        let wrong = lines.iter_mut().rev().find_map(|line| match line {
            Line::Issue(issue) if issue.series == [series] => issue.answer.as_mut().filter(|of| of[0] == refused(from)),
            _ => None,
        });
        wrong.unwrap()[0] = issued("wrong");
        let violations = judged(lines).violations;
        assert_eq!(violations.len(), 1, "{series}: {violations:?}");
    }
}

/// A piece that is too long is not judged. After the start of an unsettled operation, the rest of the history is one piece.
#[test]
fn a_piece_that_is_too_long_is_not_acquitted() {
    // The last answer is right only if the unsettled operation has issued a coupon.
    let initial = || Counter { issued: 0, cap: 1999, version: 0 };
    let steps = |open: u64| {
        let step = |n: u64| {
            let (end, step) = match n {
                1999 => (2 * n + 1, cap::Step::CapReached),
                _ if n == open => (NEVER, cap::Step::Unknown),
                _ => (2 * n + 1, cap::Step::Issued),
            };
            Timed { start: 2 * n, end, step, label: n.to_string() }
        };
        (0..2000).map(step).collect()
    };
    let limits = Limits { memory: 1_000_000, ..LIMITS };
    assert_eq!(judge::<Cap>(initial(), steps(100), limits), Verdict::TooLong(1900 + 100 % 16));
    assert_eq!(judge::<Cap>(initial(), steps(1800), limits), Verdict::Linearizable);
    assert_eq!(judge::<Cap>(initial(), steps(100), LIMITS), Verdict::Linearizable);
}

/// Searches all orders.
fn has_an_order<O: Object>(state: &O::State, remaining: &[&Timed<O::Step>]) -> bool {
    remaining.is_empty()
        || remaining.iter().enumerate().any(|(index, first)| {
            let others = remaining.iter().enumerate().filter(|(other, _)| *other != index);
            let rest: Vec<_> = others.map(|(_, other)| *other).collect();
            let may_be_first = rest.iter().all(|other| other.end >= first.start);
            may_be_first && O::apply(&first.step, state).is_some_and(|next| has_an_order::<O>(&next, &rest))
        })
}

/// Asserts that the verdict is that of a search through all orders, and counts the acquittals.
fn assert_verdict<O: Object>(initial: O::State, steps: Vec<Timed<O::Step>>, acquitted: &mut usize) {
    let expected = has_an_order::<O>(&initial, &steps.iter().collect::<Vec<_>>());
    let history = format!("{steps:#?}");
    let verdict = judge::<O>(initial, steps, Limits { min_length: 1, ..LIMITS });
    assert_eq!(matches!(verdict, Verdict::Linearizable), expected, "{verdict:?}\n{history}");
    *acquitted += usize::from(expected);
}

#[test]
fn verdicts_on_caps_agree_with_a_search_through_all_orders() {
    let mut random = StdRng::seed_from_u64(6);
    let mut acquitted = 0;
    for _ in 0..4000 {
        let mut changed = 0;
        let mut steps = Vec::new();
        for version in 1..random.random_range(2..9) {
            let start = random.random_range(0..30);
            let end = start + random.random_range(0..12);
            let (start, end, step) = match random.random_range(0..10) {
                0 => (start, NEVER, cap::Step::Unknown),
                1..=2 => {
                    let start = changed + random.random_range(0..8);
                    changed = start + random.random_range(0..8);
                    let end = if random.random_ratio(1, 4) { NEVER } else { changed };
                    (start, end, cap::Step::Apply { version, cap: random.random_range(0..4) })
                }
                3..=5 => (start, end, cap::Step::CapReached),
                6 => (start, end, cap::Step::HasRoom),
                _ => (start, end, cap::Step::Issued),
            };
            steps.push(Timed { start, end, step, label: String::new() });
        }
        assert_verdict::<Cap>(Counter { issued: 0, cap: 1, version: 0 }, steps, &mut acquitted);
    }
    assert!((800..3200).contains(&acquitted), "{acquitted}");
}

#[test]
fn verdicts_on_customers_agree_with_a_search_through_all_orders() {
    let mut random = StdRng::seed_from_u64(7);
    let mut acquitted = 0;
    for _ in 0..4000 {
        let series: &[i64] = [&[TWO_EACH], &[RESENT], EXCLUDING.as_slice()][random.random_range(0..3)];
        let mut lines = vec![apply(0, Some(1), 2)];
        for n in 0..random.random_range(1..7) {
            let (start, series) = (10 + random.random_range(0..30), series[random.random_range(0..series.len())]);
            let answer = match random.random_range(0..8) {
                0 => None,
                1..=2 if series == RESENT => Some(resent(["X", "A0", "A1"][random.random_range(0..3)])),
                1..=2 if series == TWO_EACH => Some(refused(MAX_REACHED)),
                1..=3 => Some(refused(HOLDS_EXCLUDED)),
                _ => Some(issued(&format!("A{n}"))),
            };
            let end = answer.as_ref().map(|_| start + random.random_range(0..20));
            lines.push(Line::Issue(one(&format!("k{n}"), "ann", series, start, end, answer)));
        }
        let run =
            Run { format: FORMAT, seed: 0, began: Timestamp::UNIX_EPOCH, time_zone: "UTC".to_owned(), longest_call: 0 };
        let history = History::of([Line::Run(run)].into_iter().chain(lines).collect()).unwrap();
        let settings = rules::settings(&history).unwrap();
        let operations = operations::of(&history).0;
        let codes = Codes::of(&operations);
        let group = Rc::new(Group::new(&history.run, &settings, series, millis(100)).unwrap());
        let all: Vec<_> = operations.iter().collect();
        let steps = group.history("ann", &all, &|one, code| codes.is_known(one, code)).1;
        assert_verdict::<Customer>(Holding::default(), steps, &mut acquitted);
    }
    assert!((800..3200).contains(&acquitted), "{acquitted}");
}
