use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::Value;

use crate::history::{Answer, Issue, Nanos};

/// The state of one entity of a sale, by the last answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    Nothing,
    Issued {
        code: String,
        /// A hash of the whole entity in the answer.
        shown: String,
    },
    Resent(String),
    Refused(u64),
}

impl Known {
    fn of(answer: Answer) -> Self {
        match answer {
            Answer::Issued { code, shown, .. } => Self::Issued { code, shown },
            Answer::Resent { code, .. } => Self::Resent(code),
            Answer::Refused { error, .. } => Self::Refused(error),
        }
    }

    /// Whether a till keeps the answer. It retries after 748 and 786.
    fn is_final(&self) -> bool {
        !matches!(self, Self::Nothing | Self::Refused(748 | 786))
    }
}

/// One request under its key, and the state of its entities.
#[derive(Debug, Clone)]
pub struct Sale {
    pub key: String,
    pub customer: String,
    pub series: Vec<i64>,
    pub known: Vec<Known>,
    /// The caller, as the history names it.
    pub process: String,
    pub attempts: u32,
    /// Whether a call got no answer.
    pub has_unanswered_call: bool,
    /// Every answer 786.
    pub denials: Vec<Denial>,
}

/// The answer 786 for one entity: "nothing is stored".
#[derive(Debug, Clone)]
pub struct Denial {
    pub entity: usize,
    pub request_id: String,
    /// When the request was sent.
    pub asked_at: Timestamp,
}

impl Sale {
    /// A sale whose caller is a process of its own.
    pub fn new(key: String, customer: String, series: Vec<i64>) -> Self {
        Self {
            known: vec![Known::Nothing; series.len()],
            process: key.clone(),
            key,
            customer,
            series,
            attempts: 0,
            has_unanswered_call: false,
            denials: Vec::new(),
        }
    }

    /// A call for this sale that begins now and has no answer yet.
    pub fn call(&self, start: Nanos) -> Issue {
        let (process, key, customer) = (self.process.clone(), self.key.clone(), self.customer.clone());
        Issue::unanswered(start, process, key, customer, self.series.clone())
    }

    /// The id of the last attempt.
    pub fn request_id(&self) -> String {
        format!("{}.{}", self.key, self.attempts)
    }

    /// Records each 786 in the answer to the last attempt.
    pub fn record_denials(&mut self, asked_at: Timestamp) {
        let request_id = self.request_id();
        for (entity, known) in self.known.iter().enumerate() {
            if *known == Known::Refused(786) {
                self.denials.push(Denial { entity, request_id: request_id.clone(), asked_at });
            }
        }
    }

    pub fn is_final(&self) -> bool {
        self.known.iter().all(Known::is_final)
    }

    /// Applies an answer, and returns what is wrong with it: an issued coupon must never change. Only 748 may follow it, since the
    /// service does not show a coupon while it cannot confirm that the coupon is flushed.
    pub fn apply_answer(&mut self, answer: &Value) -> Vec<String> {
        let entities = answer["response"].as_array().map(Vec::as_slice).unwrap_or_default();
        let series: Vec<_> = entities.iter().filter_map(|entity| entity["entityId"].as_i64()).collect();
        if series != self.series {
            return vec![format!("{}: the request asks for {:?}, the answer is {answer}", self.key, self.series)];
        }
        let mut violations = Vec::new();
        for (known, entity) in self.known.iter_mut().zip(entities) {
            let now = Known::of(answer_of(entity));
            if matches!(known, Known::Issued { .. }) && now == Known::Refused(748) {
                continue;
            }
            if matches!(known, Known::Issued { .. }) && *known != now {
                violations.push(format!("{}: the answer was {known:?} and later {now:?}", self.key));
            } else {
                *known = now;
            }
        }
        violations
    }
}

/// The answers of a response, as the history records them. A body that is no response of the service gives none; the till reports it.
pub fn answers(response: &Value) -> Vec<Answer> {
    response["response"].as_array().map(Vec::as_slice).unwrap_or_default().iter().map(answer_of).collect()
}

fn answer_of(entity: &Value) -> Answer {
    if let Some(error) = entity["errors"].get(0) {
        return Answer::Refused {
            error: error["code"].as_u64().unwrap_or_default(),
            message: error["message"].as_str().unwrap_or_default().to_owned(),
            // An instant that cannot be parsed counts as absent. The judges then reject a refusal that must have one.
            next_eligible_at: error["nextEligibleAt"].as_str().and_then(|instant| instant.parse().ok()),
        };
    }
    let coupon = &entity["result"];
    let code = coupon["code"].as_str().unwrap_or_default().to_owned();
    let valid_till = coupon["validTill"].as_str().and_then(|text| text.get(..10)?.parse().ok()).unwrap_or(Date::MIN);
    if entity["warnings"][0]["code"] == 700 {
        return Answer::Resent { code, valid_till };
    }
    let mut hash = DefaultHasher::new();
    entity.to_string().hash(&mut hash);
    Answer::Issued { code, valid_till, shown: format!("{:016x}", hash.finish()) }
}
