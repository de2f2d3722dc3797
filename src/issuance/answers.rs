//! What is stored of the answer to a keyed request: one word for each entity (column `keyed_request.answers`).
//! New coupons are found by their reserved ids, so a word says only what else an entity was answered.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimeParser;

use super::Granted;
use super::refusal::{Refusal, ShownInstant};
use crate::model::SeriesId;

static PARSER: DateTimeParser = DateTimeParser::new();

/// One entity with its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    /// The series, as it was asked for.
    pub(super) series_id: SeriesId,
    /// What it was answered.
    pub(super) answer: Answer,
}

/// The answer of one entity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// A new coupon, if the one with the reserved id exists; else nothing yet.
    NewCoupon,
    /// A coupon that the customer had.
    Resent(Resend),
    /// None.
    Refused(Refusal),
}

/// A coupon as it was shown again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resend {
    /// The coupon.
    pub coupon_id: i64,
    /// The version of its series that was shown, if it was not the coupon's own.
    pub series_version: Option<i32>,
    /// The redemptions that were shown.
    pub redemption_count: i32,
}

impl Answer {
    /// Of an entity with this coupon.
    pub(super) fn with(granted: &Granted) -> Self {
        granted.resent.map_or(Self::NewCoupon, Self::Resent)
    }
}

/// A word that this version cannot read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no answer that this version knows")]
pub(super) struct Unreadable(String);

impl Unreadable {
    /// The same entity as one that was not answered. Its series stands before the mark that this version does not know.
    fn as_open(&self) -> Word {
        let digits = self.0.find(|letter: char| !letter.is_ascii_digit()).map_or(self.0.as_str(), |end| &self.0[..end]);
        // A word without a number is damage: no series has this id.
        Word { series_id: SeriesId(digits.parse().unwrap_or(0)), answer: Answer::NewCoupon }
    }
}

impl fmt::Display for Word {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.series_id.0)?;
        match self.answer {
            Answer::NewCoupon => Ok(()),
            Answer::Resent(resend) => {
                write!(formatter, "={}", resend.coupon_id)?;
                if let Some(version) = resend.series_version {
                    write!(formatter, "@{version}")?;
                }
                if resend.redemption_count != 0 {
                    write!(formatter, "*{}", resend.redemption_count)?;
                }
                Ok(())
            }
            Answer::Refused(refusal) => {
                write!(formatter, "!{}", refusal.name())?;
                match refusal {
                    Refusal::Gap { next_eligible_at: ShownInstant { instant, offset } } => {
                        write!(formatter, "@{}", instant.display_with_offset(offset))
                    }
                    _ => Ok(()),
                }
            }
        }
    }
}

impl FromStr for Word {
    type Err = Unreadable;

    fn from_str(word: &str) -> Result<Self, Unreadable> {
        read(word).ok_or_else(|| Unreadable(word.to_owned()))
    }
}

fn read(word: &str) -> Option<Word> {
    let (series_id, answer) = if let Some((series_id, resend)) = word.split_once('=') {
        (series_id, Answer::Resent(read_resend(resend)?))
    } else if let Some((series_id, refusal)) = word.split_once('!') {
        (series_id, Answer::Refused(read_refusal(refusal)?))
    } else {
        (word, Answer::NewCoupon)
    };
    Some(Word { series_id: SeriesId(series_id.parse().ok()?), answer })
}

fn read_resend(resend: &str) -> Option<Resend> {
    let (rest, redemption_count) = match resend.split_once('*') {
        Some((rest, count)) => (rest, count.parse().ok()?),
        None => (resend, 0),
    };
    let (coupon_id, series_version) = match rest.split_once('@') {
        Some((coupon_id, version)) => (coupon_id, Some(version.parse().ok()?)),
        None => (rest, None),
    };
    Some(Resend { coupon_id: coupon_id.parse().ok()?, series_version, redemption_count })
}

fn read_refusal(refusal: &str) -> Option<Refusal> {
    match refusal.split_once('@') {
        None => Refusal::named(refusal),
        Some((name, at)) => {
            let Refusal::Gap { .. } = Refusal::named(name)? else { return None };
            let pieces = PARSER.parse_pieces(at).ok()?;
            let offset = pieces.to_numeric_offset()?;
            let instant: Timestamp = at.parse().ok()?;
            Some(Refusal::Gap { next_eligible_at: ShownInstant { instant, offset } })
        }
    }
}

/// The words as they are stored.
pub(super) fn join(words: impl IntoIterator<Item = Word>) -> String {
    words.into_iter().map(|word| word.to_string()).collect::<Vec<_>>().join(" ")
}

/// The stored words, in the order of the entities. One that a newer version stored counts as not answered: a retry finishes it.
pub(super) fn split(answers: &str) -> Vec<Word> {
    let or_open = |error: Unreadable| {
        tracing::error!(%error, "the stored answer of a keyed request cannot be read");
        error.as_open()
    };
    answers.split(' ').map(|word| word.parse().unwrap_or_else(or_open)).collect()
}

#[cfg(test)]
mod tests {
    use jiff::tz::Offset;
    use proptest::prelude::*;
    use strum::IntoEnumIterator;

    use super::*;

    fn answers() -> impl Strategy<Value = Answer> {
        let refusals: Vec<Refusal> = Refusal::iter().collect();
        let resend = (any::<i64>(), any::<Option<i32>>(), any::<i32>());
        let gap = (-100_000_000_i64..10_000_000_000, -50_000_i32..50_000);
        prop_oneof![
            Just(Answer::NewCoupon),
            resend.prop_map(|(coupon_id, series_version, redemption_count)| {
                Answer::Resent(Resend { coupon_id, series_version, redemption_count })
            }),
            proptest::sample::select(refusals).prop_map(Answer::Refused),
            gap.prop_map(|(second, offset)| {
                // RFC 3339 has whole minutes.
                let offset = Offset::from_seconds(offset / 60 * 60).unwrap();
                let instant = Timestamp::from_second(second).unwrap();
                Answer::Refused(Refusal::Gap { next_eligible_at: ShownInstant { instant, offset } })
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_stored_is_read(words in proptest::collection::vec((any::<i64>(), answers()), 1..5)) {
            let words: Vec<Word> =
                words.into_iter().map(|(id, answer)| Word { series_id: SeriesId(id), answer }).collect();
            prop_assert_eq!(split(&join(words.clone())), words);
        }

        #[test]
        fn no_text_panics(text in "[0-9=!@*a-z_ :+-]{0,30}") {
            prop_assert_eq!(split(&text).len(), text.split(' ').count());
        }
    }

    #[test]
    fn the_format_is_the_documented_one() {
        let resent = |series_version, redemption_count| {
            Answer::Resent(Resend { coupon_id: 4711, series_version, redemption_count })
        };
        let instant: Timestamp = "2026-11-30T18:30:00Z".parse().unwrap();
        let next_eligible_at = ShownInstant { instant, offset: Offset::from_seconds(19_800).unwrap() };
        for (word, answer) in [
            ("101", Answer::NewCoupon),
            ("101=4711", resent(None, 0)),
            ("101=4711@3", resent(Some(3), 0)),
            ("101=4711@3*2", resent(Some(3), 2)),
            ("101!unknown_series", Answer::Refused(Refusal::UnknownSeries)),
            ("101!gap@2026-12-01T00:00:00+05:30", Answer::Refused(Refusal::Gap { next_eligible_at })),
        ] {
            let written = Word { series_id: SeriesId(101), answer };
            assert_eq!((written.to_string().as_str(), word.parse()), (word, Ok(written)));
        }
        for word in ["", "x", "101=", "101!", "101!sold_out", "101!cap_reached@2026-12-01T00:00:00+05:30", "101=1@x"] {
            assert_eq!(word.parse::<Word>(), Err(Unreadable(word.to_owned())));
        }
    }
}
