//! `coupon-issuer verify` reports violated invariants as a table, with the first offending rows. It repairs nothing. The queries are
//! in `db::verify`.

use std::fmt;

use sqlx::postgres::PgConnectOptions;

use crate::db::DbError;
use crate::db::verify::{self as checks, Check, Finding, Offence};
use crate::model::OrgId;

/// Why the database cannot be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Without this error, an unknown organisation would pass all checks.
    #[error("--org {}: there is no such organisation", .0.0)]
    NoSuchOrganisation(OrgId),
    /// The database cannot be read.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// The findings. Displays as a table, the first offending rows, and a summary line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// One per check.
    pub findings: Vec<Finding>,
}

/// Runs all checks, for all organisations or for one.
///
/// # Errors
/// See [`VerifyError`].
pub async fn run(connect: &PgConnectOptions, org_id: Option<OrgId>) -> Result<Report, VerifyError> {
    match (checks::verify(connect, org_id).await?, org_id) {
        (Some(findings), _) => Ok(Report { findings }),
        (None, Some(org_id)) => Err(VerifyError::NoSuchOrganisation(org_id)),
        (None, None) => Ok(Report { findings: Vec::new() }),
    }
}

impl Report {
    /// The number of offending rows.
    #[must_use]
    pub fn wrong(&self) -> i64 {
        self.findings.iter().map(|finding| finding.wrong).sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checked = |finding: &Finding| format!("{} {}", finding.checked, texts(finding.check).1);
        let width = self.findings.iter().map(|finding| checked(finding).len()).max().unwrap_or(0);
        writeln!(formatter, "{:<62}  {:<width$}  wrong", "invariant", "checked")?;
        for finding in &self.findings {
            let invariant = texts(finding.check).0;
            writeln!(formatter, "{invariant:<62}  {:<width$}  {}", checked(finding), finding.wrong)?;
        }
        for finding in self.findings.iter().filter(|finding| finding.wrong > 0) {
            writeln!(formatter, "\n{}, but:", texts(finding.check).0)?;
            for offence in &finding.offences {
                writeln!(formatter, "  {}", line(offence))?;
            }
            let others = finding.wrong - i64::try_from(finding.offences.len()).unwrap_or(i64::MAX);
            if others > 0 {
                writeln!(formatter, "  and {others} more")?;
            }
        }
        match self.wrong() {
            0 => write!(formatter, "nothing is wrong"),
            1 => write!(formatter, "\ndrift: 1 row"),
            wrong => write!(formatter, "\ndrift: {wrong} rows"),
        }
    }
}

/// The invariant that a check verifies, and what it counts.
const fn texts(check: Check) -> (&'static str, &'static str) {
    match check {
        Check::Caps => ("no series has issued more than its cap", "series"),
        Check::Maxima => ("no customer has received more of a series than the maximum", "coupons"),
        Check::Ordinals => ("a customer's coupons of a series are numbered without a gap", "coupons"),
        Check::Counters => ("the counter of a capped series is the number of its coupons", "series"),
        Check::Codes => ("a code belongs to one coupon or to one series", "coupons"),
        Check::Pools => ("an uploaded code is in its pool or was given out once", "codes remaining"),
        Check::KeyedRequests => ("a keyed request lists its coupons and can be completed", "requests"),
        Check::Exclusions => ("no customer has coupons of mutually exclusive series", "coupons"),
        Check::Callers => ("a coupon names the till or the client that issued it", "coupons"),
        Check::Versions => ("the series snapshot of each coupon is stored", "coupons and series"),
        Check::Ids => ("each coupon has a leased id of its own", "coupons"),
        Check::Names => ("the name of each till and client is reserved", "tills and clients"),
    }
}

/// Names the row by its key, with what was found and what is expected.
fn line(offence: &Offence) -> String {
    let mut line = format!("org {}", offence.org_id.0);
    let series = offence.series_id.map(|id| format!(" series {}", id.0));
    let customer = offence.customer_id.as_ref().map(|id| format!(" customer {}", id.0));
    let subject = offence.subject.as_ref().map(|subject| format!(" {subject}"));
    line.extend([series, customer, subject].into_iter().flatten());
    // Callers choose customer ids, so these may contain control characters.
    let line = line.replace(char::is_control, "\u{fffd}");
    format!("{line}: {}; must be: {}", offence.found, offence.expected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CustomerId, SeriesId};

    fn finding(check: Check, checked: i64, wrong: i64, offences: Vec<Offence>) -> Finding {
        Finding { check, checked, wrong, offences }
    }

    #[test]
    fn a_report_names_the_first_offending_rows_and_counts_the_rest() {
        let overrun = Offence {
            org_id: OrgId(1),
            series_id: Some(SeriesId(104)),
            customer_id: None,
            subject: None,
            found: "11 issued".to_owned(),
            expected: "at most 10".to_owned(),
        };
        let duplicate = Offence {
            customer_id: Some(CustomerId("5668\n".to_owned())),
            subject: Some("code GIFT…".to_owned()),
            found: "2 coupons have this code".to_owned(),
            expected: "one".to_owned(),
            ..overrun.clone()
        };
        let report = Report {
            findings: vec![
                finding(Check::Caps, 3, 1, vec![overrun]),
                finding(Check::Maxima, 7, 0, vec![]),
                finding(Check::Codes, 1200, 3, vec![duplicate]),
            ],
        };
        let expected = "\
invariant                                                       checked       wrong
no series has issued more than its cap                          3 series      1
no customer has received more of a series than the maximum      7 coupons     0
a code belongs to one coupon or to one series                   1200 coupons  3

no series has issued more than its cap, but:
  org 1 series 104: 11 issued; must be: at most 10

a code belongs to one coupon or to one series, but:
  org 1 series 104 customer 5668\u{fffd} code GIFT…: 2 coupons have this code; must be: one
  and 2 more

drift: 4 rows";
        assert_eq!(report.to_string(), expected);
    }

    #[test]
    fn a_clean_report_says_so() {
        let report = Report { findings: vec![finding(Check::Caps, 3, 0, vec![])] };
        let expected = "\
invariant                                                       checked   wrong
no series has issued more than its cap                          3 series  0
nothing is wrong";
        assert_eq!((report.to_string().as_str(), report.wrong()), (expected, 0));
    }
}
