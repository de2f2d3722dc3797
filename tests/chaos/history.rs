//! The history of a run: every call with its answer, and every commit in order, as JSON lines.
//! docs/history.md describes the format.

use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use coupon_issuer::model::{Clock, SystemClock};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub const FORMAT: u32 = 1;

/// Nanoseconds since the start of the run, on its monotonic clock.
pub type Nanos = u64;
/// A position in the write-ahead log, in bytes.
pub type Lsn = u64;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Line {
    Run(Run),
    Apply(Apply),
    Import(Import),
    Issue(Issue),
    Receipt(Issue),
    Mark(Mark),
    Coupon(Coupon),
    Settings(Settings),
    Codes(Codes),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    pub format: u32,
    pub seed: u64,
    /// The start of the run by the system's clock.
    pub began: Timestamp,
    pub time_zone: String,
    /// How long the service may work on a call that got no answer.
    pub longest_call: Nanos,
}

/// The greatest difference between the clocks of a service and of the test. Around midnight a service may be on another day.
const MAX_CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_secs(1);

impl Run {
    /// The first and the last day in this zone that a service's clock may have shown between these instants.
    pub fn days(&self, zone: &TimeZone, start: Nanos, end: Nanos) -> (Date, Date) {
        let at = |nanos: Nanos| self.began + SignedDuration::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX));
        let day = |instant: Timestamp| zone.to_datetime(instant).date();
        (day(at(start) - MAX_CLOCK_DIFFERENCE), day(at(end) + MAX_CLOCK_DIFFERENCE))
    }
}

/// A call of `apply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apply {
    pub process: String,
    pub start: Nanos,
    /// `None`: it failed, or its answer was lost.
    pub end: Option<Nanos>,
    pub series: Vec<Series>,
}

/// The rules of a series under the names of the contract. A limit of -1 means unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    pub id: i64,
    pub client_handling_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generic_code: Option<String>,
    pub valid_till_date: Date,
    pub max_create: i64,
    pub is_multiple_vouchers_per_user_allowed: bool,
    pub max_vouchers_per_user: i64,
    pub do_not_resend_existing_voucher: bool,
    pub min_days_between_vouchers: i64,
    pub mutual_exclusive_series_ids: Vec<i64>,
}

/// An upload of codes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    pub process: String,
    pub start: Nanos,
    /// `None`: it failed, or its answer was lost.
    pub end: Option<Nanos>,
    pub series: i64,
    pub count: u32,
}

/// A call that issues coupons or fetches their receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issue {
    pub process: String,
    pub start: Nanos,
    /// `None`: there was no answer.
    pub end: Option<Nanos>,
    pub key: String,
    pub customer: String,
    pub series: Vec<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// One answer for each series, in order, if the status is 200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Vec<Answer>>,
}

impl Issue {
    pub fn unanswered(start: Nanos, process: String, key: String, customer: String, series: Vec<i64>) -> Self {
        Self { process, start, end: None, key, customer, series, status: None, answer: None }
    }

    /// The end of the call and its answers. `None`: the call settles no entity.
    pub fn answered(&self) -> Option<(Nanos, &[Answer])> {
        (self.status == Some(200)).then_some((self.end?, self.answer.as_deref()?))
    }
}

/// The answer for one entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Answer {
    Issued {
        code: String,
        valid_till: Date,
        /// A hash of the whole entity in the answer.
        shown: String,
    },
    Resent {
        code: String,
        valid_till: Date,
    },
    Refused {
        error: u64,
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_eligible_at: Option<Timestamp>,
    },
}

/// The coupon may be issued or not.
const IN_DOUBT: u64 = 748;
/// The database could not store the coupon.
const NOT_STORED: u64 = 786;

impl Answer {
    /// Whether the answer decides the entity.
    pub const fn settles(&self) -> bool {
        !matches!(self, Self::Refused { error: IN_DOUBT, .. })
    }

    /// Whether the answer refuses the coupon for a reason that no limit has to explain.
    pub const fn is_not_stored(&self) -> bool {
        matches!(self, Self::Refused { error: NOT_STORED, .. })
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Issued { code, valid_till, .. } => write!(f, "issued {code} until {valid_till}"),
            Self::Resent { code, valid_till } => write!(f, "resent {code} until {valid_till}"),
            Self::Refused { error, message, next_eligible_at } => {
                write!(f, "refused {error} {message}")?;
                next_eligible_at.map_or(Ok(()), |at| write!(f, " until {at}"))
            }
        }
    }
}

/// The position of the write-ahead log at some moment between two instants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub start: Nanos,
    pub end: Nanos,
    pub inserted: Lsn,
    pub flushed: Lsn,
}

/// A committed coupon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coupon {
    pub commit: Lsn,
    pub id: i64,
    /// `None`: no call of the history asked for the coupon.
    pub key: Option<String>,
    pub entity: usize,
    pub customer: String,
    pub series: i64,
    /// The code as answers show it.
    pub code: String,
    pub issued_at: Timestamp,
}

/// A committed cap of a series.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub commit: Lsn,
    pub series: i64,
    #[serde(rename = "maxCreate")]
    pub max_create: i64,
}

/// Committed uploaded codes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_field_names, reason = "the fields are named as in the file")]
pub struct Codes {
    pub commit: Lsn,
    pub series: i64,
    pub codes: Vec<String>,
}

/// A whole history, read from its file.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    pub run: Run,
    pub applies: Vec<Apply>,
    pub imports: Vec<Import>,
    /// In the order of their starts.
    pub issues: Vec<Issue>,
    pub receipts: Vec<Issue>,
    pub marks: Vec<Mark>,
    /// In the order of the log.
    pub commits: Vec<Commit>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Commit {
    Coupon(Coupon),
    Settings(Settings),
    Codes(Codes),
}

impl Commit {
    pub const fn lsn(&self) -> Lsn {
        match self {
            Self::Coupon(Coupon { commit, .. })
            | Self::Settings(Settings { commit, .. })
            | Self::Codes(Codes { commit, .. }) => *commit,
        }
    }

    /// Sets the position.
    pub fn at(mut self, lsn: Lsn) -> Self {
        match &mut self {
            Self::Coupon(Coupon { commit, .. })
            | Self::Settings(Settings { commit, .. })
            | Self::Codes(Codes { commit, .. }) => *commit = lsn,
        }
        self
    }

    pub fn line(self) -> Line {
        match self {
            Self::Coupon(coupon) => Line::Coupon(coupon),
            Self::Settings(settings) => Line::Settings(settings),
            Self::Codes(codes) => Line::Codes(codes),
        }
    }
}

impl History {
    /// An error names the malformed line.
    pub fn read(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let line = |(number, text): (usize, std::io::Result<String>)| {
            let malformed = |error: &dyn Display| format!("{}, line {}: {error}", path.display(), number + 1);
            serde_json::from_str(&text.map_err(|error| malformed(&error))?).map_err(|error| malformed(&error))
        };
        Self::of(BufReader::new(file).lines().enumerate().map(line).collect::<Result<_, _>>()?)
    }

    pub fn of(lines: Vec<Line>) -> Result<Self, String> {
        let mut runs = Vec::new();
        let (mut applies, mut imports, mut issues, mut receipts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut marks, mut commits) = (Vec::new(), Vec::new());
        for line in lines {
            match line {
                Line::Run(run) => runs.push(run),
                Line::Apply(apply) => applies.push(apply),
                Line::Import(import) => imports.push(import),
                Line::Issue(issue) => issues.push(issue),
                Line::Receipt(receipt) => receipts.push(receipt),
                Line::Mark(mark) => marks.push(mark),
                Line::Coupon(coupon) => commits.push(Commit::Coupon(coupon)),
                Line::Settings(settings) => commits.push(Commit::Settings(settings)),
                Line::Codes(codes) => commits.push(Commit::Codes(codes)),
            }
        }
        let [run] =
            <[Run; 1]>::try_from(runs).map_err(|runs| format!("{} lines of type run instead of one", runs.len()))?;
        if run.format != FORMAT {
            return Err(format!("format {} instead of {FORMAT}", run.format));
        }
        issues.sort_by_key(|issue: &Issue| issue.start);
        receipts.sort_by_key(|receipt: &Issue| receipt.start);
        marks.sort_by_key(|mark: &Mark| mark.start);
        commits.sort_by_key(Commit::lsn);
        Ok(Self { run, applies, imports, issues, receipts, marks, commits })
    }
}

/// Writes the history during the run.
pub struct Recorder {
    pub path: PathBuf,
    began: Instant,
    file: Mutex<BufWriter<File>>,
}

impl Recorder {
    pub fn start(path: PathBuf, seed: u64, time_zone: &str, longest_call: Duration) -> Self {
        let file = Mutex::new(BufWriter::new(File::create(&path).unwrap()));
        let recorder = Self { path, began: Instant::now(), file };
        let longest_call = u64::try_from(longest_call.as_nanos()).unwrap();
        let (began, time_zone) = (SystemClock.now(), time_zone.to_owned());
        let run = Run { format: FORMAT, seed, began, time_zone, longest_call };
        recorder.write(&Line::Run(run));
        recorder
    }

    pub fn now(&self) -> Nanos {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    pub fn write(&self, line: &Line) {
        let line = serde_json::to_string(line).unwrap();
        writeln!(self.file.lock().unwrap(), "{line}").unwrap();
    }

    pub fn flush(&self) {
        self.file.lock().unwrap().flush().unwrap();
    }
}
