//! The stored answers of a keyed request (column `keyed_request.answers`): one text for each entity, separated by spaces.
//! New coupons are found by their reserved ids, so the text of an entity holds only a resend or a refusal.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimeParser;

use super::outcome::{Entity, Granted, Resend};
use super::refusal::{Refusal, ShownInstant};
use crate::model::SeriesId;

static PARSER: DateTimeParser = DateTimeParser::new();

/// An entity with its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntityAnswer {
    pub(super) series_id: SeriesId,
    pub(super) answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// A new coupon, if the coupon with the reserved id exists. Otherwise the entity has no answer yet.
    NewCoupon,
    /// A coupon that the customer already held.
    Resent(Resend),
    Refused(Refusal),
}

impl From<&Granted> for Answer {
    fn from(granted: &Granted) -> Self {
        granted.resent.map_or(Self::NewCoupon, Self::Resent)
    }
}

impl From<&Entity> for EntityAnswer {
    fn from(entity: &Entity) -> Self {
        let answer = match &entity.outcome {
            Ok(granted) => Answer::from(&**granted),
            Err(refusal) => Answer::Refused(*refusal),
        };
        Self { series_id: entity.series_id, answer }
    }
}

/// An answer that this version cannot parse.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("this version cannot parse the answer {0:?}")]
pub(super) struct InvalidAnswer(String);

impl InvalidAnswer {
    /// The same entity without an answer. The series comes before the mark that this version does not know.
    fn without_answer(&self) -> EntityAnswer {
        let digits = self.0.find(|letter: char| !letter.is_ascii_digit()).map_or(self.0.as_str(), |end| &self.0[..end]);
        // A text without a number is damaged: no series has the id 0.
        EntityAnswer { series_id: SeriesId(digits.parse().unwrap_or(0)), answer: Answer::NewCoupon }
    }
}

impl fmt::Display for EntityAnswer {
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

impl FromStr for EntityAnswer {
    type Err = InvalidAnswer;

    fn from_str(text: &str) -> Result<Self, InvalidAnswer> {
        parse_entity(text).ok_or_else(|| InvalidAnswer(text.to_owned()))
    }
}

fn parse_entity(text: &str) -> Option<EntityAnswer> {
    let (series_id, answer) = if let Some((series_id, resend)) = text.split_once('=') {
        (series_id, Answer::Resent(parse_resend(resend)?))
    } else if let Some((series_id, refusal)) = text.split_once('!') {
        (series_id, Answer::Refused(parse_refusal(refusal)?))
    } else {
        (text, Answer::NewCoupon)
    };
    Some(EntityAnswer { series_id: SeriesId(series_id.parse().ok()?), answer })
}

fn parse_resend(resend: &str) -> Option<Resend> {
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

fn parse_refusal(refusal: &str) -> Option<Refusal> {
    match refusal.split_once('@') {
        None => Refusal::from_name(refusal),
        Some((name, at)) => {
            let Refusal::Gap { .. } = Refusal::from_name(name)? else { return None };
            let pieces = PARSER.parse_pieces(at).ok()?;
            let offset = pieces.to_numeric_offset()?;
            let instant: Timestamp = at.parse().ok()?;
            Some(Refusal::Gap { next_eligible_at: ShownInstant { instant, offset } })
        }
    }
}

/// The stored text of these answers.
pub(super) fn join(answers: impl IntoIterator<Item = EntityAnswer>) -> String {
    answers.into_iter().map(|answer| answer.to_string()).collect::<Vec<_>>().join(" ")
}

/// Parses stored answers, in the order of the entities. An answer that a newer version stored counts as missing, so that a retry
/// finishes the entity.
pub(super) fn split(stored: &str) -> Vec<EntityAnswer> {
    let without_answer = |error: InvalidAnswer| {
        tracing::error!(%error, "the stored answer of a keyed request cannot be read");
        error.without_answer()
    };
    stored.split(' ').map(|text| text.parse().unwrap_or_else(without_answer)).collect()
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
        fn split_is_the_inverse_of_join(answers in proptest::collection::vec((any::<i64>(), answers()), 1..5)) {
            let answers: Vec<EntityAnswer> =
                answers.into_iter().map(|(id, answer)| EntityAnswer { series_id: SeriesId(id), answer }).collect();
            prop_assert_eq!(split(&join(answers.clone())), answers);
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
        for (text, answer) in [
            ("101", Answer::NewCoupon),
            ("101=4711", resent(None, 0)),
            ("101=4711@3", resent(Some(3), 0)),
            ("101=4711@3*2", resent(Some(3), 2)),
            ("101!unknown_series", Answer::Refused(Refusal::UnknownSeries)),
            ("101!gap@2026-12-01T00:00:00+05:30", Answer::Refused(Refusal::Gap { next_eligible_at })),
        ] {
            let entity = EntityAnswer { series_id: SeriesId(101), answer };
            assert_eq!((entity.to_string().as_str(), text.parse()), (text, Ok(entity)));
        }
        for text in ["", "x", "101=", "101!", "101!sold_out", "101!cap_reached@2026-12-01T00:00:00+05:30", "101=1@x"] {
            assert_eq!(text.parse::<EntityAnswer>(), Err(InvalidAnswer(text.to_owned())));
        }
    }
}
