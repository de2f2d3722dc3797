//! Small handwritten histories, each with one detail that is right or wrong, and large generated ones.
//! A test of a conviction lists every finding: the replay must report the error and nothing else.

mod generated;

use super::contract_model::{CAP_REACHED, GAP, HAS_ONE, HOLDS_EXCLUDED, MAX_REACHED, POOL_EMPTY};
use super::{Replayed, replay};
use crate::history::{
    Answer, Apply, Codes, Commit, Coupon, FORMAT, History, Import, Issue, Lsn, Mark, Nanos, Run, Series, Settings,
};

const PLAIN: i64 = 1;
/// Has a cap of two.
const CAPPED: i64 = 2;
const ONE_EACH: i64 = 5;
const TWO_EACH: i64 = 6;
const RESENT: i64 = 7;
const ONE_A_DAY: i64 = 8;
const UPLOADED: i64 = 9;
const GENERIC: i64 = 11;
/// These two exclude each other.
const TEA: i64 = 12;
const COFFEE: i64 = 13;

const IN_DOUBT: &str = "748 Coupon service timed out";
const NOT_STORED: &str = "786 Coupon processing failed, Please try again later";

const LAST_DAY: &str = "2099-12-31";
const BEGAN: &str = "2026-11-22T10:00:00Z";
const HOUR: Nanos = 3_600_000_000_000;

fn series(id: i64, cap: i64) -> Series {
    Series {
        id,
        client_handling_type: match id {
            UPLOADED => "DISC_CODE_PIN",
            GENERIC => "GENERIC",
            _ => "DISC_CODE",
        }
        .to_owned(),
        generic_code: (id == GENERIC).then(|| "FORALL".to_owned()),
        valid_till_date: LAST_DAY.parse().unwrap(),
        max_create: cap,
        is_multiple_vouchers_per_user_allowed: id != ONE_EACH,
        max_vouchers_per_user: if id == TWO_EACH { 2 } else { -1 },
        do_not_resend_existing_voucher: id != RESENT,
        min_days_between_vouchers: if id == ONE_A_DAY { 1 } else { -1 },
        mutual_exclusive_series_ids: if id == TEA { vec![COFFEE] } else { Vec::new() },
    }
}

fn catalogue(cap: i64) -> Vec<Series> {
    let ids = [PLAIN, CAPPED, ONE_EACH, TWO_EACH, RESENT, ONE_A_DAY, UPLOADED, GENERIC, TEA, COFFEE];
    ids.into_iter().map(|id| series(id, if id == CAPPED { cap } else { -1 })).collect()
}

fn issued(code: &str) -> Answer {
    Answer::Issued { code: code.to_owned(), valid_till: LAST_DAY.parse().unwrap(), shown: format!("hash of {code}") }
}

fn resent(code: &str) -> Answer {
    Answer::Resent { code: code.to_owned(), valid_till: LAST_DAY.parse().unwrap() }
}

fn refused(text: &str) -> Answer {
    let (error, message) = text.split_once(' ').unwrap();
    Answer::Refused { error: error.parse().unwrap(), message: message.to_owned(), next_eligible_at: None }
}

fn refused_until(text: &str, until: &str) -> Answer {
    let Answer::Refused { error, message, .. } = refused(text) else { panic!("{text}") };
    Answer::Refused { error, message, next_eligible_at: Some(until.parse().unwrap()) }
}

/// Builds a history. The customer of a call or coupon is its key without the number at the end.
struct HistoryBuilder(History);

fn customer_of(key: &str) -> String {
    key.trim_end_matches(|end: char| end.is_ascii_digit()).to_owned()
}

fn builder() -> HistoryBuilder {
    let run =
        Run { format: FORMAT, seed: 0, began: BEGAN.parse().unwrap(), time_zone: "UTC".to_owned(), longest_call: 0 };
    let (imports, issues, receipts, marks, commits) = Default::default();
    HistoryBuilder(History { run, applies: Vec::new(), imports, issues, receipts, marks, commits }).apply(0, Some(1), 2)
}

fn call(key: &str, start: Nanos, end: Option<Nanos>, series: &[i64], answers: &[Answer]) -> Issue {
    Issue {
        process: format!("till {key}"),
        start,
        end,
        key: key.to_owned(),
        customer: customer_of(key),
        series: series.to_vec(),
        status: end.map(|_| 200),
        answer: end.map(|_| answers.to_vec()),
    }
}

impl HistoryBuilder {
    fn apply(mut self, start: Nanos, end: Option<Nanos>, cap: i64) -> Self {
        self.0.applies.push(Apply { process: "operator".to_owned(), start, end, series: catalogue(cap) });
        self
    }

    fn import(mut self, start: Nanos, end: Nanos, count: u32) -> Self {
        let process = "operator".to_owned();
        self.0.imports.push(Import { process, start, end: Some(end), series: UPLOADED, count });
        self
    }

    fn asks(self, key: &str, start: Nanos, end: Nanos, series: i64, answer: Answer) -> Self {
        self.asks_all(key, start, end, &[series], &[answer])
    }

    fn asks_all(mut self, key: &str, start: Nanos, end: Nanos, series: &[i64], answers: &[Answer]) -> Self {
        self.0.issues.push(call(key, start, Some(end), series, answers));
        self
    }

    fn hangs_up(mut self, key: &str, start: Nanos, series: i64) -> Self {
        self.0.issues.push(call(key, start, None, &[series], &[]));
        self
    }

    fn fails(mut self, key: &str, start: Nanos, end: Nanos, series: i64, status: u16) -> Self {
        let failed = Issue { status: Some(status), answer: None, ..call(key, start, Some(end), &[series], &[]) };
        self.0.issues.push(failed);
        self
    }

    fn receipt(mut self, key: &str, start: Nanos, end: Nanos, series: i64, answer: Answer) -> Self {
        self.0.receipts.push(call(key, start, Some(end), &[series], &[answer]));
        self
    }

    fn mark(mut self, start: Nanos, end: Nanos, flushed: Lsn, inserted: Lsn) -> Self {
        self.0.marks.push(Mark { start, end, inserted, flushed });
        self
    }

    fn coupon(self, commit: Lsn, key: &str, series: i64, code: &str) -> Self {
        self.commits(commit, Some(key), 0, series, code, BEGAN)
    }

    fn commits(mut self, commit: Lsn, key: Option<&str>, entity: usize, series: i64, code: &str, at: &str) -> Self {
        self.0.commits.push(Commit::Coupon(Coupon {
            commit,
            id: i64::try_from(self.0.commits.len()).unwrap(),
            key: key.map(str::to_owned),
            entity,
            customer: customer_of(key.unwrap_or("a")),
            series,
            code: code.to_owned(),
            issued_at: at.parse().unwrap(),
        }));
        self
    }

    fn cap(mut self, commit: Lsn, cap: i64) -> Self {
        self.0.commits.push(Commit::Settings(Settings { commit, series: CAPPED, max_create: cap }));
        self
    }

    fn codes(mut self, commit: Lsn, codes: &[&str]) -> Self {
        let codes = codes.iter().map(|code| (*code).to_owned()).collect();
        self.0.commits.push(Commit::Codes(Codes { commit, series: UPLOADED, codes }));
        self
    }

    fn replayed(&mut self) -> Replayed {
        self.0.issues.sort_by_key(|call| call.start);
        self.0.commits.sort_by_key(Commit::lsn);
        replay(&self.0)
    }

    #[track_caller]
    fn acquitted(mut self) {
        let Replayed { duplicates, divergences, .. } = self.replayed();
        assert!(duplicates.is_empty() && divergences.is_empty(), "{duplicates:#?}{divergences:#?}");
    }

    /// Asserts that there are exactly these findings. Each is given by a part of its text.
    #[track_caller]
    fn convicted(mut self, expected: &[&str]) {
        let Replayed { duplicates, divergences, .. } = self.replayed();
        let all = [duplicates, divergences].concat();
        let is_found = |part: &&str| all.iter().any(|finding| finding.contains(part));
        let agrees = all.len() == expected.len() && expected.iter().all(is_found);
        assert!(agrees, "expected {expected:?}, found {all:#?}");
    }
}

/// Every kind of line once.
#[test]
fn a_correct_history_is_acquitted() {
    let mut builder = builder()
        .import(2, 5, 2)
        .codes(10, &["U1", "U2"])
        .asks_all("a1", 10, 20, &[PLAIN, ONE_EACH, ONE_EACH], &[issued("P1"), issued("O1"), refused(HAS_ONE)])
        .coupon(20, "a1", PLAIN, "P1")
        .commits(30, Some("a1"), 1, ONE_EACH, "O1", BEGAN)
        .hangs_up("b1", 11, RESENT)
        .fails("b1", 12, 13, RESENT, 503)
        .asks("b1", 14, 18, RESENT, issued("S1"))
        .coupon(25, "b1", RESENT, "S1")
        .asks("b2", 19, 22, RESENT, resent("S1"))
        .asks("b2", 23, 24, RESENT, resent("S1"))
        .asks("c1", 21, 29, UPLOADED, issued("U2"))
        .coupon(40, "c1", UPLOADED, "U2")
        .asks("d1", 30, 40, GENERIC, issued("FORALL"))
        .asks("e1", 30, 40, GENERIC, issued("FORALL"))
        .coupon(50, "d1", GENERIC, "FORALL")
        .coupon(60, "e1", GENERIC, "FORALL")
        .receipt("e1", 41, 42, GENERIC, issued("FORALL"))
        .mark(43, 44, 60, 60);
    let replayed = builder.replayed();
    assert_eq!((replayed.coupons, replayed.operations, replayed.answers), (6, 8, 10));
    builder.acquitted();
}

#[test]
fn an_issued_coupon_must_be_committed_for_its_entity() {
    builder().asks("a", 10, 20, PLAIN, issued("P")).convicted(&["key a, entity 0 (customer a, series 1): issued P"]);
    builder()
        .asks("a", 10, 20, PLAIN, issued("P"))
        .coupon(10, "a", PLAIN, "Q")
        .convicted(&["was not committed for it"]);
    let swapped = builder().asks("a", 10, 20, PLAIN, issued("Q")).asks("b", 10, 20, PLAIN, issued("P"));
    let swapped = swapped.coupon(10, "a", PLAIN, "P").coupon(20, "b", PLAIN, "Q");
    swapped.convicted(&["key a, entity 0 (customer a, series 1): issued Q", "key b, entity 0"]);
    let mut shorter = builder().asks("a", 10, 20, PLAIN, issued("P")).coupon(10, "a", PLAIN, "P");
    shorter.0.applies[0].series[0].valid_till_date = "2099-12-30".parse().unwrap();
    shorter.convicted(&["another last day"]);
}

#[test]
fn duplicates_are_found() {
    let both = || builder().asks("a", 10, 20, PLAIN, issued("P")).coupon(10, "a", PLAIN, "P");
    both().coupon(20, "a", PLAIN, "Q").convicted(&["one entity has two coupons"]);
    // The model rejects the code, too.
    let twice = both().asks("b", 10, 20, PLAIN, issued("P")).coupon(20, "b", PLAIN, "P");
    twice.convicted(&["one code", "a code that it may not have"]);
    let mut twice = both().asks("b", 10, 20, PLAIN, issued("Q")).coupon(20, "b", PLAIN, "Q");
    let Commit::Coupon(second) = &mut twice.0.commits[1] else { panic!() };
    second.id = 0;
    twice.convicted(&["one id"]);
    let together = both().asks("b", 10, 20, PLAIN, issued("Q")).coupon(10, "b", PLAIN, "Q");
    together.convicted(&["one transaction"]);
    both().cap(10, 2).convicted(&["one transaction"]);
    // A generic code is shared within its series only.
    let shared = builder().asks("a", 10, 20, GENERIC, issued("FORALL")).coupon(10, "a", GENERIC, "FORALL");
    let shared = shared.asks("b", 10, 20, PLAIN, issued("FORALL")).coupon(20, "b", PLAIN, "FORALL");
    shared.convicted(&["one code", "a code that it may not have"]);
}

#[test]
fn every_coupon_belongs_to_a_call() {
    builder().commits(10, None, 0, PLAIN, "P", BEGAN).convicted(&["no call has asked for it"]);
    builder().coupon(10, "a", PLAIN, "P").convicted(&["no call has asked for it"]);
    let asks = || builder().hangs_up("a", 10, PLAIN);
    asks().commits(10, Some("a"), 1, PLAIN, "P", BEGAN).convicted(&["no call has asked for it"]);
    asks().coupon(10, "a", ONE_EACH, "P").convicted(&["ask for customer a and series 1"]);
    asks().coupon(10, "a", PLAIN, "P").acquitted();
    asks().acquitted();
}

#[test]
fn all_calls_under_one_key_are_the_same() {
    let calls = builder().hangs_up("a", 10, PLAIN).hangs_up("a", 20, ONE_EACH);
    calls.convicted(&["asks for something else"]);
    builder().asks_all("a", 10, 20, &[PLAIN, PLAIN], &[refused(NOT_STORED)]).convicted(&["other entities"]);
}

/// If two coupons contradict each other, the replay cannot know which is wrong and reports both.
#[test]
fn a_coupon_is_committed_while_its_operation_runs() {
    let early = || builder().asks("b", 10, 20, PLAIN, issued("B")).coupon(20, "b", PLAIN, "B");
    // Too early: a coupon that was answered before the operation began comes later in the order.
    let before = early().coupon(10, "a", PLAIN, "A");
    before
        .asks("a", 30, 40, PLAIN, issued("A"))
        .convicted(&["above 20 answered issued A", "up to 9 answered issued B"]);
    let during = early().coupon(10, "a", PLAIN, "A").asks("a", 15, 40, PLAIN, issued("A"));
    during.acquitted();
    // Too late: a coupon whose call began after the answer comes earlier in the order.
    let after = early().coupon(30, "a", PLAIN, "A").asks("a", 5, 8, PLAIN, issued("A"));
    after.convicted(&["up to 19 answered issued A", "above 30 answered issued B"]);
    // An unsettled operation has no end.
    early().coupon(30, "a", PLAIN, "A").hangs_up("a", 5, PLAIN).acquitted();
}

#[test]
fn marks_say_when_a_coupon_was_committed() {
    let asks = || builder().asks("a", 30, 40, PLAIN, issued("A")).coupon(50, "a", PLAIN, "A");
    asks().mark(20, 25, 50, 60).convicted(&["lies in no operation"]);
    asks().mark(20, 25, 49, 60).mark(50, 55, 50, 50).acquitted();
    // A mark that ended after the start of the operation proves nothing about the time before.
    asks().mark(20, 31, 50, 60).acquitted();
    asks().mark(41, 45, 10, 49).convicted(&["lies in no operation", "on disk only up to 10"]);
    asks().mark(39, 45, 10, 49).acquitted();
}

#[test]
fn a_call_without_an_answer_may_be_late() {
    let late = |longest_call| {
        let mut builder = builder().hangs_up("a", 10, PLAIN).asks("a", 20, 30, PLAIN, refused(NOT_STORED));
        builder.0.run.longest_call = longest_call;
        builder.mark(55, 56, 50, 60).mark(40, 41, 0, 45).coupon(50, "a", PLAIN, "A")
    };
    late(46).acquitted();
    late(29).convicted(&["in no operation of its entity"]);
    late(46).asks("a", 70, 80, PLAIN, issued("A")).acquitted();
}

#[test]
fn nothing_is_shown_before_it_is_on_disk() {
    let asks = || builder().asks("a", 30, 40, PLAIN, issued("A")).coupon(50, "a", PLAIN, "A");
    asks().mark(41, 45, 50, 60).acquitted();
    asks().mark(40, 45, 49, 60).acquitted();
    asks().mark(41, 45, 49, 60).mark(46, 47, 49, 60).convicted(&["commit 50 was shown before 41"]);
}

#[test]
fn a_refused_operation_has_no_coupon() {
    // In the second history the mark shows the coupon before the second operation begins, so it belongs to the first.
    for error in [NOT_STORED, MAX_REACHED] {
        let asks = || builder().asks("a", 10, 20, ONE_EACH, refused(error)).coupon(10, "a", ONE_EACH, "A");
        let wrong: &[&str] =
            if error == NOT_STORED { &["in no operation of its entity"] } else { &["in no operation", "refused 730"] };
        asks().convicted(wrong);
        asks().mark(25, 26, 10, 10).hangs_up("a", 30, ONE_EACH).convicted(wrong);
    }
    let again = || builder().asks("a", 10, 20, PLAIN, refused(NOT_STORED)).coupon(10, "a", PLAIN, "A");
    again().asks("a", 30, 40, PLAIN, issued("A")).acquitted();
    again().hangs_up("a", 30, PLAIN).acquitted();
    again().mark(25, 26, 10, 10).asks("a", 30, 40, PLAIN, issued("A")).convicted(&["in no operation"]);
    // 748 settles nothing, so the operation goes on.
    let open = builder().asks("a", 10, 20, PLAIN, refused(IN_DOUBT)).coupon(10, "a", PLAIN, "A").mark(25, 26, 10, 10);
    open.asks("a", 30, 40, PLAIN, issued("A")).acquitted();
}

#[test]
fn a_resent_operation_has_no_coupon() {
    let held = || builder().asks("a1", 10, 20, RESENT, issued("A")).coupon(10, "a1", RESENT, "A");
    let again = || held().asks("a2", 30, 40, RESENT, resent("A"));
    let both = again().coupon(20, "a2", RESENT, "B");
    both.convicted(&["committed, and the model gives the coupon until", "in no operation"]);
    let later = again().hangs_up("a2", 50, RESENT).coupon(20, "a2", RESENT, "B");
    later.convicted(&["committed, and the model gives the coupon until", "in no operation"]);
}

#[test]
fn an_answer_is_not_taken_back() {
    let first = || builder().asks("a", 10, 20, PLAIN, issued("A")).coupon(10, "a", PLAIN, "A");
    first().asks("a", 30, 40, PLAIN, issued("A")).acquitted();
    first().asks("a", 30, 40, PLAIN, refused(IN_DOUBT)).acquitted();
    first().hangs_up("a", 30, PLAIN).acquitted();
    first().asks("a", 30, 40, PLAIN, refused(NOT_STORED)).convicted(&["and later (from 30 to 40) Refused"]);
    first().asks("a", 30, 40, PLAIN, resent("A")).convicted(&["and later (from 30 to 40) Resent"]);
    let other = Answer::Issued { code: "A".to_owned(), valid_till: LAST_DAY.parse().unwrap(), shown: "B".to_owned() };
    first().asks("a", 30, 40, PLAIN, other).convicted(&["and later"]);
    let held = builder().asks("a1", 10, 20, RESENT, issued("A")).coupon(10, "a1", RESENT, "A");
    let again = held.asks("a2", 30, 40, RESENT, resent("A"));
    again.asks("a2", 50, 60, RESENT, refused(NOT_STORED)).convicted(&["and later"]);
}

#[test]
fn a_receipt_shows_what_is_committed_and_was_answered() {
    let asks = || builder().hangs_up("a", 10, PLAIN).coupon(10, "a", PLAIN, "A");
    asks().receipt("a", 20, 30, PLAIN, issued("A")).acquitted();
    asks().receipt("a", 20, 30, PLAIN, issued("B")).convicted(&["receipt of key a, entity 0"]);
    asks()
        .mark(35, 36, 5, 5)
        .receipt("a", 20, 30, PLAIN, issued("A"))
        .convicted(&["is commit 10, but by then only commits up to 5 are possible", "on disk only up to 5"]);
    // The refusal may be that of an earlier attempt.
    asks().receipt("a", 20, 30, PLAIN, refused(CAP_REACHED)).acquitted();
    let answered = || builder().asks("a", 10, 20, PLAIN, issued("A")).coupon(10, "a", PLAIN, "A");
    answered().receipt("a", 30, 40, PLAIN, refused(IN_DOUBT)).acquitted();
    answered().receipt("a", 15, 40, PLAIN, refused(CAP_REACHED)).acquitted();
    let other = Answer::Issued { code: "A".to_owned(), valid_till: LAST_DAY.parse().unwrap(), shown: "B".to_owned() };
    answered().receipt("a", 15, 40, PLAIN, other).convicted(&["and its call was answered Issued"]);
    answered().receipt("a", 30, 40, PLAIN, refused(CAP_REACHED)).convicted(&["and its call was answered Issued"]);
    // A call after a receipt has seen its coupons, too.
    let seen = || builder().hangs_up("a1", 10, ONE_EACH).coupon(10, "a1", ONE_EACH, "A");
    let seen = || seen().receipt("a1", 20, 30, ONE_EACH, issued("A"));
    seen().asks("a2", 40, 50, ONE_EACH, refused(HAS_ONE)).acquitted();
    let wrong = ["key a2, entity 0 (customer a, series 5): refused 5001"];
    seen().asks("a2", 40, 50, ONE_EACH, refused(CAP_REACHED)).convicted(&wrong);
    let early = seen().asks("a2", 40, 50, ONE_EACH, issued("B")).coupon(5, "a2", ONE_EACH, "B");
    early.convicted(&[
        "gives 709",
        "above 10 answered issued B",
        "is commit 10, but by then only commits up to 4 are possible",
    ]);
}

#[test]
fn limits_of_a_customer_hold() {
    let two = |series, first: &str, second: &str| {
        let asks = builder().hangs_up("a1", 10, series).hangs_up("a2", 10, series);
        asks.coupon(10, "a1", series, first).coupon(20, "a2", series, second)
    };
    two(ONE_EACH, "A", "B").convicted(&["committed, and the model gives 709"]);
    two(RESENT, "A", "B").convicted(&["the model gives the coupon until 2099-12-31 that the customer holds"]);
    two(ONE_A_DAY, "A", "B").convicted(&["less than min days between issuals, until 2026-11-23"]);
    two(TWO_EACH, "A", "B").acquitted();
    two(TWO_EACH, "A", "B").hangs_up("a3", 10, TWO_EACH).coupon(30, "a3", TWO_EACH, "C").convicted(&["gives 730"]);
    let both = || builder().hangs_up("a", 10, TEA).coupon(10, "a", TEA, "A");
    both().hangs_up("a2", 10, COFFEE).coupon(20, "a2", COFFEE, "B").convicted(&["mutually exclusive"]);
    both().hangs_up("b", 10, COFFEE).coupon(20, "b", COFFEE, "B").acquitted();
}

#[test]
fn a_cap_holds() {
    let two = || builder().hangs_up("a", 10, CAPPED).hangs_up("b", 10, CAPPED).hangs_up("c", 10, CAPPED);
    let two = || two().coupon(10, "a", CAPPED, "A").coupon(20, "b", CAPPED, "B");
    two().acquitted();
    two().coupon(30, "c", CAPPED, "C").convicted(&["committed, and the model gives 5001"]);
    // The cap is raised before the third coupon, or only after it.
    let raised = |at| two().coupon(30, "c", CAPPED, "C").apply(2, Some(40), 3).cap(at, 3);
    raised(25).acquitted();
    raised(35).convicted(&["committed, and the model gives 5001"]);
    two().cap(25, 4).convicted(&["no apply has asked for that"]);
}

#[test]
fn a_refusal_because_of_the_cap_needs_a_reached_cap() {
    // A has the first coupon. B gets the second one, by a call from 30 to 40.
    let one = || builder().asks("a", 10, 20, CAPPED, issued("A")).coupon(10, "a", CAPPED, "A");
    let both = || one().asks("b", 30, 40, CAPPED, issued("B")).coupon(20, "b", CAPPED, "B");
    one().asks("c", 25, 28, CAPPED, refused(CAP_REACHED)).convicted(&["to the last the model gives a new coupon"]);
    // Too early: the call of B had not begun.
    both()
        .asks("c", 25, 28, CAPPED, refused(CAP_REACHED))
        .convicted(&["from commit 10 to 19 the model gives a new coupon"]);
    both().asks("c", 25, 31, CAPPED, refused(CAP_REACHED)).acquitted();
    both().asks("c", 45, 50, CAPPED, refused(CAP_REACHED)).acquitted();
    // The cap is raised during the call, or before it: the call sees an apply that succeeded before.
    let raised = |end| both().apply(41, end, 3).cap(30, 3).asks("c", 50, 60, CAPPED, refused(CAP_REACHED));
    raised(Some(55)).acquitted();
    raised(None).acquitted();
    raised(Some(45)).convicted(&["the model gives a new coupon"]);
    let filled = raised(Some(45)).asks("d", 41, 70, CAPPED, issued("D")).coupon(40, "d", CAPPED, "D");
    filled.acquitted();
    // The cap is not raised yet: the apply begins later.
    let later = both().asks("c", 50, 60, CAPPED, refused(CAP_REACHED)).apply(70, Some(80), 3).cap(30, 3);
    later.asks("d", 65, 90, CAPPED, issued("D")).coupon(40, "d", CAPPED, "D").acquitted();
}

#[test]
fn a_refusal_depends_on_earlier_answers_and_not_on_later_calls() {
    let one = || builder().asks("a1", 10, 20, ONE_EACH, issued("A")).coupon(10, "a1", ONE_EACH, "A");
    one().asks("a2", 30, 40, ONE_EACH, refused(HAS_ONE)).acquitted();
    one().asks("a2", 15, 18, ONE_EACH, refused(HAS_ONE)).acquitted();
    one().asks("a2", 5, 8, ONE_EACH, refused(HAS_ONE)).convicted(&["from commit 0 to 9 the model gives a new coupon"]);
    one()
        .asks("b", 30, 40, ONE_EACH, refused(HAS_ONE))
        .convicted(&["key b, entity 0 (customer b, series 5): refused 709"]);
    // Refused for a reason that does not hold.
    one().asks("a2", 30, 40, ONE_EACH, refused(MAX_REACHED)).convicted(&["the model gives 709"]);
    let reworded = refused("709 Coupon processing failed");
    one().asks("a2", 30, 40, ONE_EACH, reworded).convicted(&["the model gives 709"]);
    let tea = || builder().asks("a1", 10, 20, TEA, issued("A")).coupon(10, "a1", TEA, "A");
    tea().asks("a2", 30, 40, COFFEE, refused(HOLDS_EXCLUDED)).acquitted();
    tea().asks("b", 30, 40, COFFEE, refused(HOLDS_EXCLUDED)).convicted(&["the model gives a new coupon"]);
}

/// A change of the settings during a call can make a refusal right.
#[test]
fn a_refusal_may_follow_a_change_of_the_settings() {
    let one = || builder().asks("a1", 10, 20, CAPPED, issued("A")).coupon(10, "a1", CAPPED, "A");
    let lowered = |start| one().apply(start, None, 1).cap(20, 1).asks("b", 30, 40, CAPPED, refused(CAP_REACHED));
    lowered(35).acquitted();
    lowered(45).convicted(&["from commit 10 to 19 the model gives a new coupon"]);
    let filled = |start| {
        let others = one().hangs_up("d", 11, CAPPED).hangs_up("e", 12, CAPPED).apply(start, None, 3).cap(20, 3);
        others.coupon(30, "d", CAPPED, "D").coupon(40, "e", CAPPED, "E").asks("b", 30, 40, CAPPED, refused(CAP_REACHED))
    };
    filled(35).acquitted();
    filled(45).convicted(&["from commit 10 to 19 the model gives a new coupon"]);
    // With an empty pool the answer is 5005. Only with a code in the pool is it the gap.
    let gap = |start| {
        let held = builder().codes(5, &["U"]).asks("a1", 10, 20, UPLOADED, issued("U")).coupon(10, "a1", UPLOADED, "U");
        let mut held = held.codes(20, &["V"]).hangs_up("b", start, PLAIN).coupon(19, "b", PLAIN, "B");
        held.0.applies[0].series.iter_mut().for_each(|series| series.min_days_between_vouchers = 1);
        held.asks("a2", 30, 40, UPLOADED, refused_until(GAP, "2026-11-23T00:00:00Z"))
    };
    gap(35).acquitted();
    gap(45).convicted(&["from commit 10 to 18 the model gives 5005"]);
}

/// A commit that a mark proves need not be visible yet. Nor need one that only an unrelated answer proves.
#[test]
fn a_call_may_miss_commits_that_no_answer_has_shown() {
    let full = || builder().hangs_up("a", 10, CAPPED).hangs_up("b", 11, CAPPED).coupon(10, "a", CAPPED, "A");
    let full = || full().coupon(20, "b", CAPPED, "B").apply(12, None, 3).cap(30, 3).mark(40, 41, 30, 30);
    full().asks("c", 50, 60, CAPPED, refused(CAP_REACHED)).acquitted();
    let shown = full().asks("d", 13, 45, PLAIN, issued("D")).coupon(40, "d", PLAIN, "D");
    shown.asks("c", 50, 60, CAPPED, refused(CAP_REACHED)).acquitted();
    let shown =
        full().asks("d", 13, 45, CAPPED, issued("D")).coupon(40, "d", CAPPED, "D").apply(14, None, 4).cap(50, 4);
    shown.asks("c", 50, 60, CAPPED, refused(CAP_REACHED)).acquitted();
    let shown =
        full().apply(14, None, 4).cap(35, 4).asks("d", 13, 45, CAPPED, issued("D")).coupon(40, "d", CAPPED, "D");
    shown
        .asks("c", 50, 60, CAPPED, refused(CAP_REACHED))
        .convicted(&["from commit 40 to the last the model gives a new"]);
}

#[test]
fn a_resent_coupon_belongs_to_the_customer() {
    let held = || builder().asks("a1", 10, 20, RESENT, issued("A")).coupon(10, "a1", RESENT, "A");
    held().asks("a2", 30, 40, RESENT, resent("A")).acquitted();
    held().asks("b", 30, 40, RESENT, resent("A")).convicted(&["resent A"]);
    held().asks("a2", 30, 40, RESENT, resent("B")).convicted(&["resent B"]);
    let shorter = Answer::Resent { code: "A".to_owned(), valid_till: "2099-12-30".parse().unwrap() };
    held().asks("a2", 30, 40, RESENT, shorter).convicted(&["resent A until 2099-12-30"]);
    let early = held().asks("a2", 5, 8, RESENT, resent("A"));
    early.convicted(&["from commit 0 to 9 the model gives a new coupon", "above 10 answered issued A"]);
    // The operation begins before the attempt that is answered.
    held().hangs_up("a2", 12, RESENT).asks("a2", 30, 40, RESENT, resent("A")).acquitted();
    // Resent on its last day, or a day later: the last attempt began after that day.
    let expires = |mut builder: HistoryBuilder| {
        let rules = builder.0.applies[0].series.iter_mut().find(|series| series.id == RESENT).unwrap();
        rules.valid_till_date = "2026-11-22".parse().unwrap();
        let shown = "hash of A".to_owned();
        let first = Answer::Issued { code: "A".to_owned(), valid_till: rules.valid_till_date, shown };
        let again = Answer::Resent { code: "A".to_owned(), valid_till: rules.valid_till_date };
        let held = builder.asks("a1", 10, 20, RESENT, first).coupon(10, "a1", RESENT, "A");
        held.asks("a2", 15 * HOUR, 16 * HOUR, RESENT, again)
    };
    expires(builder()).convicted(&["the model gives 712 Coupon Series has expired"]);
    expires(builder().hangs_up("a2", 13 * HOUR, RESENT)).acquitted();
    // A resend proves that its coupon is committed. A later call cannot have caused a commit before it.
    let shown = builder().hangs_up("a1", 10, RESENT).coupon(10, "a1", RESENT, "A");
    let shown = shown.asks("a2", 15, 20, RESENT, resent("A"));
    shown.asks("b", 30, 40, PLAIN, issued("B")).coupon(5, "b", PLAIN, "B").convicted(&["in no operation", "resent A"]);
}

#[test]
fn uploaded_codes_are_issued_once_and_run_out() {
    let asks = |key, start, end, code| {
        builder().import(2, 5, 1).codes(10, &["U"]).asks(key, start, end, UPLOADED, issued(code))
    };
    let one = || asks("a", 10, 20, "U").coupon(20, "a", UPLOADED, "U");
    one().acquitted();
    asks("a", 10, 20, "V").coupon(20, "a", UPLOADED, "V").convicted(&["a code that it may not have"]);
    asks("a", 10, 20, "U").coupon(5, "a", UPLOADED, "U").convicted(&["gives 5005", "was uploaded", "in no operation"]);
    let twice = one().asks("b", 10, 20, UPLOADED, issued("U")).coupon(30, "b", UPLOADED, "U");
    twice.convicted(&["one code", "the model gives 5005"]);
    one().codes(30, &["U"]).convicted(&["the code U was uploaded at commit 30"]);
    // The pool runs empty and is filled again.
    one().asks("b", 15, 18, UPLOADED, refused(POOL_EMPTY)).acquitted();
    one().asks("b", 6, 8, UPLOADED, refused(POOL_EMPTY)).convicted(&["the model gives a new coupon"]);
    let filled = |end| one().import(30, end, 2).codes(30, &["V", "W"]).asks("b", 50, 60, UPLOADED, refused(POOL_EMPTY));
    filled(55).acquitted();
    filled(45).convicted(&["from commit 30 to the last the model gives a new coupon"]);
    let other_half = one().import(30, 45, 2).codes(30, &["V"]).codes(40, &["W"]);
    other_half.asks("b", 50, 60, UPLOADED, refused(POOL_EMPTY)).convicted(&["from commit 40"]);
    // An upload becomes visible after its flush. Coupons that are committed later may be visible before that.
    let missed = |end| {
        let uploads = builder().import(2, 5, 1).codes(10, &["U"]).import(30, end, 1).codes(30, &["V"]);
        let last = uploads.asks("b", 35, 60, UPLOADED, issued("U")).coupon(40, "b", UPLOADED, "U");
        last.asks("c", 50, 55, UPLOADED, refused(POOL_EMPTY))
    };
    missed(52).acquitted();
    missed(45).convicted(&["the model gives a new coupon"]);
}

#[test]
fn days_are_those_of_the_time_zone() {
    // The run begins at ten in the morning.
    let coupon = |at: &str| {
        let asks =
            builder().asks("a1", 1, 20, ONE_A_DAY, issued("A")).commits(10, Some("a1"), 0, ONE_A_DAY, "A", BEGAN);
        asks.hangs_up("a2", 30, ONE_A_DAY).commits(20, Some("a2"), 0, ONE_A_DAY, "B", at)
    };
    coupon("2026-11-22T23:59:59Z").convicted(&["until 2026-11-23"]);
    coupon("2026-11-23T00:00:00Z").acquitted();
    let in_zone = |mut builder: HistoryBuilder| {
        "Europe/Berlin".clone_into(&mut builder.0.run.time_zone);
        builder
    };
    in_zone(coupon("2026-11-22T22:59:59Z")).convicted(&["until 2026-11-23"]);
    in_zone(coupon("2026-11-22T23:00:00Z")).acquitted();
}

#[test]
fn a_gap_is_over_on_the_next_day() {
    let held = || builder().asks("a1", 10, 20, ONE_A_DAY, issued("A")).coupon(10, "a1", ONE_A_DAY, "A");
    let refuses = |start, end, until: &str| held().asks("a2", start, end, ONE_A_DAY, refused_until(GAP, until));
    refuses(30, 40, "2026-11-23T00:00:00Z").acquitted();
    refuses(30, 40, "2026-11-24T00:00:00Z").convicted(&["until 2026-11-23"]);
    held().asks("a2", 30, 40, ONE_A_DAY, refused(GAP)).convicted(&["until 2026-11-23"]);
    // Both days are possible: the call goes on past midnight, or begins within the clock difference of it.
    refuses(13 * HOUR, 15 * HOUR, "2026-11-23T00:00:00Z").acquitted();
    refuses(14 * HOUR, 15 * HOUR, "2026-11-23T00:00:00Z").acquitted();
    refuses(15 * HOUR, 16 * HOUR, "2026-11-23T00:00:00Z").convicted(&["the model gives a new coupon"]);
}

#[test]
fn a_history_without_rules_is_not_judged() {
    let mut nothing = builder();
    nothing.0.applies.clear();
    nothing.convicted(&["no line of type apply"]);
    let mut unknown = builder();
    "PAPER".clone_into(&mut unknown.0.applies[0].series[0].client_handling_type);
    unknown.convicted(&["series 1: PAPER"]);
    let mut nowhere = builder();
    "Nowhere/Land".clone_into(&mut nowhere.0.run.time_zone);
    nowhere.convicted(&["Nowhere/Land"]);
}
